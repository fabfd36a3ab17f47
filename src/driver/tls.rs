//! The transport over a TLS connection of our own: an `SSL` that reads records from, and writes them to, memory of ours.
//!
//! One receive and one send per event: what the socket has is received into a buffer that all connections of the thread
//! share, and OpenSSL takes its records from there; what it writes is collected and sent at once. A connection at rest
//! holds neither: bytes that are left over, in one direction or the other, are copied to memory of its own.
//!
//! An `SSL` is not for two threads at once. A [`Tls`] is used by the thread at work on its connection only.
#![expect(unsafe_code, reason = "OpenSSL is C")]

use core::{
    cell::{Cell, RefCell},
    ffi::{c_char, c_int, c_long, c_void},
    mem, ptr,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicPtr, Ordering},
};
use std::{
    io::{self, IoSlice},
    net::Shutdown,
    os::fd::BorrowedFd,
    sync::Arc,
};

use super::{
    Transport,
    openssl::{self, Bio, BioMethod, OpenSsl, Ssl},
    plain::{Early, Socket},
};
use crate::{conn::outbox::WriteSocket as _, limits::memory::Claim, proto::Violation};

/// How much is received at a time.
const RECEIVE: usize = 64 * 1024;
/// So many bytes of records may be held that the socket has not taken; a record that was begun below that comes on top.
const HELD: usize = 32 * 1024;
/// The most data of a record (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;

thread_local! {
    /// Where a thread receives records.
    static RECEIVED: RefCell<Box<[u8]>> = RefCell::new(Box::default());
    /// Where a thread collects records, between the connections that borrow it.
    static COLLECTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// OpenSSL runs on this thread for a connection of ours.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// Whether OpenSSL calls back, on this thread, because of a [`Tls`].
pub fn is_at_work() -> bool {
    AT_WORK.get()
}

/// OpenSSL runs for a connection of ours while this lives.
struct AtWork;

impl AtWork {
    fn begin() -> Self {
        AT_WORK.set(true);
        Self
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.set(false);
    }
}

/// Makes the kind of BIO that a [`Tls`] gives its `SSL`; `None` without memory. `openssl` lives as long as a child serves
/// connections, and so do the BIOs.
pub fn new_method(openssl: &'static OpenSsl) -> Option<NonNull<BioMethod>> {
    OPENSSL.store(ptr::from_ref(openssl).cast_mut(), Ordering::Release);
    openssl.new_method(c"mod_websocket", (read_records, write_records, control, create))
}

/// What the BIO of a connection reads from and writes to.
struct Records {
    /// Received, and not yet taken by OpenSSL: in the thread's buffer, or in `rest`. Only valid within a read.
    input: *const u8,
    input_len: usize,
    /// What was left over when a read ended.
    rest: Vec<u8>,
    /// What its memory counts for.
    claim: Claim,
    /// Records to send; the first `sent` bytes have left.
    output: Vec<u8>,
    sent: usize,
}

impl Records {
    /// Counts what the connection keeps: records that wait to be sent, and `input` bytes of what has been received.
    fn count(&mut self, input: usize) -> io::Result<()> {
        self.claim.cover(self.output.len() + input).map_err(|_| {
            self.claim.budget().refuse();
            io::Error::new(io::ErrorKind::OutOfMemory, Violation::Memory)
        })
    }
}

/// A TLS connection on a socket of ours.
pub struct Tls {
    openssl: &'static OpenSsl,
    /// A reference of our own, the only one that is used.
    ssl: NonNull<Ssl>,
    /// From a Box; OpenSSL's BIO knows it too, and uses it within calls for `ssl` only.
    records: NonNull<Records>,
    socket: Arc<Socket>,
    /// Data that was read before the connection was taken over.
    early: Early,
    /// The `SSL` may hold something that no further byte will bring out.
    unread: bool,
    /// The socket may have more: the last receive filled the buffer, or the last read did not ask the socket at all.
    more: bool,
    /// Reading stopped since the socket does not take what OpenSSL has to answer (RFC 8446 §4.6.3).
    held_up: bool,
    /// What ended the connection, behind data that was delivered first.
    failed: Option<io::Error>,
    /// Bytes of records; of early data the data itself, whose records nobody has counted.
    received: u64,
    sent: u64,
}

// SAFETY: both pointers are used by nobody else, and neither object minds which thread it is used on.
unsafe impl Send for Tls {}

/// What a call of OpenSSL's came to.
enum Done {
    Bytes(usize),
    WantRead,
    WantWrite,
    Ended,
}

impl Tls {
    /// Takes over a connection whose handshake is done; `early` is data that was read from it before. What is received and
    /// cannot be decrypted yet counts for `claim`.
    ///
    /// # Safety
    /// - `ssl` is live, this is a reference of the caller's own, which is handed over, and nobody else uses the
    ///   connection any more.
    /// - `method` was made by [`new_method`] with the same `openssl`.
    pub unsafe fn new(
        openssl: &'static OpenSsl,
        method: NonNull<BioMethod>,
        ssl: NonNull<Ssl>,
        socket: Arc<Socket>,
        early: Early,
        claim: Claim,
    ) -> io::Result<Self> {
        let records = Box::new(Records {
            input: ptr::null(),
            input_len: 0,
            rest: Vec::new(),
            claim,
            output: Vec::new(),
            sent: 0,
        });
        let records = NonNull::from(Box::leak(records));
        let received = early.len() as u64;
        let tls = Self {
            openssl,
            ssl,
            records,
            socket,
            early,
            unread: true,
            more: false,
            held_up: false,
            failed: None,
            received,
            sent: 0,
        };
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one reason covers all")]
        // SAFETY: the SSL is ours, as this function demands. The BIO's data outlives it, see `drop`; SSL_set_bio takes
        // the one reference and drops the BIOs that there were.
        unsafe {
            let bio = (openssl.BIO_new)(method.as_ptr());
            if bio.is_null() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            (openssl.BIO_set_data)(bio, records.as_ptr().cast());
            (openssl.SSL_set_bio)(ssl.as_ptr(), bio, bio);
            // OpenSSL takes no more than the record at hand: what is left over stays ours to see.
            (openssl.SSL_set_read_ahead)(ssl.as_ptr(), 0);
            openssl.set_mode(
                ssl.as_ptr(),
                openssl::MODE_PARTIAL_WRITE
                    | openssl::MODE_MOVING_WRITE_BUFFER
                    | openssl::MODE_AUTO_RETRY
                    | openssl::MODE_RELEASE_BUFFERS,
            );
        }
        Ok(tls)
    }

    /// What OpenSSL's answer to a read or a write means.
    fn judge(&self, answer: c_int) -> io::Result<Done> {
        if answer > 0 {
            return Ok(Done::Bytes(answer as usize));
        }
        // SAFETY: the connection is live and ours, and the answer is of the last call for it, on this thread.
        match unsafe { (self.openssl.SSL_get_error)(self.ssl.as_ptr(), answer) } {
            openssl::ERROR_WANT_READ => Ok(Done::WantRead),
            openssl::ERROR_WANT_WRITE => Ok(Done::WantWrite),
            openssl::ERROR_ZERO_RETURN => Ok(Done::Ended),
            _ => Err(io::Error::other(format!("TLS: {}", self.openssl.error()))),
        }
    }

    /// Has OpenSSL decrypt what there is.
    fn decrypt(&mut self, buffer: &mut [u8]) -> io::Result<Done> {
        let _at_work = AtWork::begin();
        let len = buffer.len().min(c_int::MAX as usize) as c_int;
        // SAFETY: the function has no preconditions.
        unsafe { (self.openssl.ERR_clear_error)() };
        // SAFETY: the connection is live and ours; the buffer is as long as said.
        let answer =
            unsafe { (self.openssl.SSL_read)(self.ssl.as_ptr(), buffer.as_mut_ptr().cast(), len) };
        self.judge(answer)
    }

    /// Whether OpenSSL, or we, hold received bytes.
    fn holds_records(&self) -> bool {
        // SAFETY: the value is live, and nobody uses it at the moment.
        unsafe { (*self.records.as_ptr()).input_len > 0 }
    }

    /// How many bytes of records the socket has not taken.
    fn held(&self) -> usize {
        // SAFETY: the value is live, and nobody uses it at the moment.
        let records = unsafe { self.records.as_ref() };
        records.output.len() - records.sent
    }

    /// Decrypts what has been received into `buffer` as far as there is room. 0 if nothing came of it: `None` at the end
    /// of the stream.
    fn decrypt_all(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        // A record that is taken wholly leaves nothing behind, so that there is no need to ask.
        while filled < buffer.len() && (self.unread || self.holds_records()) {
            match self.decrypt(&mut buffer[filled..]) {
                Ok(Done::Bytes(n)) => {
                    filled += n;
                    self.unread = filled == buffer.len();
                }
                Ok(Done::WantRead) => {
                    self.unread = false;
                    break;
                }
                // Its answer to a KeyUpdate has no room.
                Ok(Done::WantWrite) => {
                    self.unread = true;
                    if !self.send()? {
                        self.held_up = true;
                        break;
                    }
                }
                Ok(Done::Ended) if filled == 0 => return Ok(None),
                Ok(Done::Ended) => {
                    self.unread = true;
                    break;
                }
                Err(error) => {
                    // The alert that OpenSSL has for the client, as far as there is room.
                    let _ = self.send();
                    if filled == 0 {
                        return Err(error);
                    }
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(Some(filled))
    }

    /// Reads with `shared`, the thread's buffer for records.
    fn read_with(&mut self, shared: &mut [u8], buffer: &mut [u8]) -> io::Result<usize> {
        let mut received = false;
        loop {
            match self.decrypt_all(buffer)? {
                None => return Ok(0),
                Some(0) if self.held_up => return Err(io::ErrorKind::WouldBlock.into()),
                // Records without data for us, or part of one. There may be more, but others want their turn, too.
                Some(0) if received => return Err(io::ErrorKind::Interrupted.into()),
                Some(0) => {}
                Some(n) => return Ok(n),
            }
            // OpenSSL goes on behind a record without data (MODE_AUTO_RETRY), so it wants more only when it has taken all.
            debug_assert!(!self.holds_records());
            self.more = false;
            let n = self.socket.read(shared)?;
            if n == 0 {
                // Without a close_notify, as many clients end: what was on its way did not come to more.
                return Ok(0);
            }
            self.received += n as u64;
            self.more = n == shared.len();
            received = true;
            // SAFETY: the value is live, and nobody uses it at the moment. The input is only used until `keep_rest`.
            let records = unsafe { self.records.as_mut() };
            (records.input, records.input_len) = (shared.as_ptr(), n);
        }
    }

    /// Copies what OpenSSL has not taken of the thread's buffer to the connection.
    fn keep_rest(&mut self) {
        // SAFETY: the value is live, and nobody uses it at the moment.
        let records = unsafe { self.records.as_mut() };
        if records.input_len == 0 {
            records.rest = Vec::new();
            if records.output.is_empty() {
                records.claim.release();
            }
        } else if let Err(error) = records.count(records.input_len) {
            records.rest = Vec::new();
            self.failed.get_or_insert(error);
        } else {
            // SAFETY: `input` leads to so many bytes of the thread's buffer, or of `rest`, both of which still live.
            let rest = unsafe { slice::from_raw_parts(records.input, records.input_len) };
            records.rest = rest.to_vec();
        }
        (records.input, records.input_len) = (records.rest.as_ptr(), records.rest.len());
    }

    /// Sends the records that were collected; whether all of them left.
    fn send(&mut self) -> io::Result<bool> {
        // SAFETY: the value is live, and nobody uses it at the moment.
        let records = unsafe { self.records.as_mut() };
        while records.sent < records.output.len() {
            match self.socket.write(&[IoSlice::new(&records.output[records.sent..])]) {
                Ok(n) => {
                    records.sent += n;
                    self.sent += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // A connection that waits keeps what waits, and no more.
                    let rest = records.output[records.sent..].to_vec();
                    give_back(mem::replace(&mut records.output, rest));
                    records.sent = 0;
                    records.count(records.input_len)?;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        give_back(mem::take(&mut records.output));
        records.sent = 0;
        Ok(true)
    }
}

/// Leaves memory for records to the thread's next connection.
fn give_back(mut output: Vec<u8>) {
    output.clear();
    COLLECTED.with_borrow_mut(|collected| {
        if collected.capacity() < output.capacity() {
            *collected = output;
        }
    });
}

impl Transport for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.early.is_empty() {
            return Ok(self.early.take(buffer));
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.held_up = false;
        // What the socket has got meanwhile was shown once, and is not shown again (see `epoll`).
        self.more = true;
        RECEIVED.with_borrow_mut(|shared| {
            if shared.is_empty() {
                *shared = vec![0; RECEIVE].into();
            }
            let result = self.read_with(shared, buffer);
            self.keep_rest();
            result
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // OpenSSL writes nothing behind its alert.
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut taken = 0;
        while taken < bytes.len() {
            if self.held() >= HELD && !self.send()? {
                break;
            }
            let portion = &bytes[taken..][..(bytes.len() - taken).min(RECORD)];
            let answer = {
                let _at_work = AtWork::begin();
                // SAFETY: the function has no preconditions.
                unsafe { (self.openssl.ERR_clear_error)() };
                // SAFETY: the connection is live and ours; the bytes are as many as said. What would have blocked is
                // offered again from where it began, in a portion that is as long.
                unsafe {
                    let (data, len) = (portion.as_ptr().cast(), portion.len() as c_int);
                    (self.openssl.SSL_write)(self.ssl.as_ptr(), data, len)
                }
            };
            match self.judge(answer)? {
                Done::Bytes(n) => taken += n,
                Done::WantWrite => {
                    if !self.send()? {
                        break;
                    }
                }
                Done::WantRead => break,
                Done::Ended => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<bool> {
        self.send()
    }

    fn holds_input(&self) -> bool {
        self.more || self.unread || self.failed.is_some() || self.holds_records()
    }

    fn is_held_up(&self) -> bool {
        self.held_up
    }

    fn held_output(&self) -> usize {
        self.held()
    }

    fn on_the_wire(&self) -> Option<(u64, u64)> {
        Some((self.received, self.sent))
    }

    fn socket(&self) -> Option<Arc<Socket>> {
        None
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }

    fn end_output(&mut self) {
        {
            let _at_work = AtWork::begin();
            // SAFETY: the connection is live and ours. Its answer does not matter: the client's close_notify is not
            // waited for (RFC 8446 §6.1).
            unsafe { (self.openssl.SSL_shutdown)(self.ssl.as_ptr()) };
            // SAFETY: the function has no preconditions.
            unsafe { (self.openssl.ERR_clear_error)() };
        }
        let _ = self.send();
        self.socket.shutdown(Shutdown::Write);
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _at_work = AtWork::begin();
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one reason covers both")]
        // SAFETY: the connection is live, and this reference is ours and not used any more. Nothing is written: both sides
        // count as shut down, so that the session may be resumed. Its BIO goes along, or, if somebody has kept a
        // reference, is never used again.
        unsafe {
            (self.openssl.SSL_set_shutdown)(self.ssl.as_ptr(), openssl::BOTH_SHUTDOWNS);
            (self.openssl.SSL_free)(self.ssl.as_ptr());
        }
        // SAFETY: `new` made it from a Box, and OpenSSL, whose BIO knew it, is done.
        drop(unsafe { Box::from_raw(self.records.as_ptr()) });
    }
}

/// OpenSSL's BIO_get_data and the like, for the functions that it calls: they are given the BIO, and nothing else.
static OPENSSL: AtomicPtr<OpenSsl> = AtomicPtr::new(ptr::null_mut());

/// Runs `f` with the records of the connection whose BIO this is; `default` for a BIO of nobody's.
///
/// # Safety
/// - `bio` is that of a [`Tls`], within a call for its `SSL`.
unsafe fn with_records(bio: *mut Bio, f: impl FnOnce(&OpenSsl, &mut Records) -> c_int) -> c_int {
    // SAFETY: `new_method`, which comes before any BIO, stores a table that lives longer than any (see there).
    let Some(openssl) = (unsafe { OPENSSL.load(Ordering::Acquire).as_ref() }) else { return -1 };
    // SAFETY: the BIO is live, as OpenSSL calls for it.
    let records = unsafe { (openssl.BIO_get_data)(bio) }.cast::<Records>();
    // SAFETY: `records` is what the BIO was made with, as this function demands: the records outlive the BIO, and while
    // OpenSSL runs nobody else uses them.
    let records = unsafe { records.as_mut() };
    // SAFETY: the BIO is live, as OpenSSL calls for it.
    unsafe { (openssl.BIO_clear_flags)(bio, openssl::BIO_RETRY) };
    records.map_or(-1, |records| f(openssl, records))
}

/// Gives OpenSSL bytes that were received.
unsafe extern "C" fn read_records(bio: *mut Bio, buffer: *mut c_char, len: c_int) -> c_int {
    let read = |openssl: &OpenSsl, records: &mut Records| {
        let n = records.input_len.min(len.max(0) as usize);
        if n == 0 {
            // SAFETY: the BIO is live, as OpenSSL calls for it.
            unsafe { (openssl.BIO_set_flags)(bio, openssl::BIO_RETRY_READ) };
            return -1;
        }
        // SAFETY: within a read `input` leads to so many live bytes, of which `n` are taken; OpenSSL's buffer has room for
        // `len`, and is no memory of ours.
        unsafe { ptr::copy_nonoverlapping(records.input, buffer.cast(), n) };
        // SAFETY: as above.
        records.input = unsafe { records.input.add(n) };
        records.input_len -= n;
        n as c_int
    };
    // SAFETY: OpenSSL calls this for the BIO of a Tls, within a call for its SSL.
    unsafe { with_records(bio, read) }
}

/// Collects bytes that OpenSSL has for the client, unless too many wait already.
unsafe extern "C" fn write_records(bio: *mut Bio, bytes: *const c_char, len: c_int) -> c_int {
    let write = |openssl: &OpenSsl, records: &mut Records| {
        if records.output.len() - records.sent >= HELD {
            // SAFETY: the BIO is live, as OpenSSL calls for it.
            unsafe { (openssl.BIO_set_flags)(bio, openssl::BIO_RETRY_WRITE) };
            return -1;
        }
        if records.output.capacity() == 0 {
            records.output = COLLECTED.take();
        }
        // SAFETY: OpenSSL passes so many live bytes.
        let bytes = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len.max(0) as usize) };
        records.output.extend_from_slice(bytes);
        len
    };
    // SAFETY: OpenSSL calls this for the BIO of a Tls, within a call for its SSL.
    unsafe { with_records(bio, write) }
}

unsafe extern "C" fn control(_: *mut Bio, what: c_int, _: c_long, _: *mut c_void) -> c_long {
    c_long::from(what == openssl::BIO_CTRL_FLUSH)
}

unsafe extern "C" fn create(bio: *mut Bio) -> c_int {
    // SAFETY: `new_method` stores a table that lives longer than any BIO (see there).
    if let Some(openssl) = unsafe { OPENSSL.load(Ordering::Acquire).as_ref() } {
        // SAFETY: OpenSSL passes the BIO that it makes.
        unsafe { (openssl.BIO_set_init)(bio, 1) };
    }
    1
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks, reason = "a stand-in for C, called on one thread only")]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "as above")]
mod tests {
    //! A stand-in for OpenSSL: a record is its length in one byte, and so many bytes of data. One without data demands an
    //! answer of [`ANSWER`] bytes, as a KeyUpdate does, and nothing is read while that cannot be written.

    use super::*;
    use crate::limits::memory::UNLIMITED;
    use std::{ffi::CStr, io::Read as _, io::Write as _, os::unix::net::UnixStream};

    const ANSWER: usize = 1000;

    #[derive(Default)]
    struct FakeMethod {
        read: Option<openssl::BioRead>,
        write: Option<openssl::BioWrite>,
    }

    struct FakeBio {
        method: *const FakeMethod,
        data: *mut c_void,
    }

    #[derive(Default)]
    struct FakeSsl {
        bio: Option<*mut FakeBio>,
        /// A record that has not come to an end.
        begun: Vec<u8>,
        data: Vec<u8>,
        answer_due: bool,
        wants: c_int,
    }

    impl FakeSsl {
        fn read_bio(&mut self, bytes: &mut [u8]) -> usize {
            let bio = self.bio.unwrap();
            let read = unsafe { (*(*bio).method).read.unwrap() };
            let n = unsafe { read(bio.cast(), bytes.as_mut_ptr().cast(), bytes.len() as c_int) };
            self.wants = openssl::ERROR_WANT_READ;
            n.max(0) as usize
        }

        fn write_bio(&mut self, bytes: &[u8]) -> bool {
            let bio = self.bio.unwrap();
            let write = unsafe { (*(*bio).method).write.unwrap() };
            let n = unsafe { write(bio.cast(), bytes.as_ptr().cast(), bytes.len() as c_int) };
            self.wants = openssl::ERROR_WANT_WRITE;
            n > 0
        }

        /// Sees to it that there is data; as OpenSSL, it takes no byte that is not of the record.
        fn get_data(&mut self) -> bool {
            while self.data.is_empty() {
                if self.answer_due {
                    if !self.write_bio(&[b'!'; ANSWER]) {
                        return false;
                    }
                    self.answer_due = false;
                }
                let missing =
                    self.begun.first().map_or(1, |&n| usize::from(n) + 1 - self.begun.len());
                let mut bytes = vec![0; missing];
                let n = self.read_bio(&mut bytes);
                if n == 0 {
                    return false;
                }
                self.begun.extend_from_slice(&bytes[..n]);
                if self.begun.len() == usize::from(self.begun[0]) + 1 {
                    self.data = self.begun.split_off(1);
                    self.begun.clear();
                    self.answer_due = self.data.is_empty();
                }
            }
            true
        }
    }

    unsafe extern "C" fn nothing() -> c_long {
        0
    }

    unsafe extern "C" fn version(_: c_int) -> *const c_char {
        c"OpenSSL of the tests".as_ptr()
    }

    unsafe extern "C" fn version_num() -> core::ffi::c_ulong {
        0x3000_0000
    }

    unsafe extern "C" fn method_new(_: c_int, _: *const c_char) -> *mut BioMethod {
        Box::into_raw(Box::<FakeMethod>::default()).cast()
    }

    unsafe extern "C" fn set_read(method: *mut BioMethod, read: openssl::BioRead) -> c_int {
        unsafe { (*method.cast::<FakeMethod>()).read = Some(read) };
        1
    }

    unsafe extern "C" fn set_write(method: *mut BioMethod, write: openssl::BioWrite) -> c_int {
        unsafe { (*method.cast::<FakeMethod>()).write = Some(write) };
        1
    }

    unsafe extern "C" fn bio_new(method: *const BioMethod) -> *mut Bio {
        Box::into_raw(Box::new(FakeBio { method: method.cast(), data: ptr::null_mut() })).cast()
    }

    unsafe extern "C" fn set_data(bio: *mut Bio, data: *mut c_void) {
        unsafe { (*bio.cast::<FakeBio>()).data = data };
    }

    unsafe extern "C" fn get_data(bio: *mut Bio) -> *mut c_void {
        unsafe { (*bio.cast::<FakeBio>()).data }
    }

    unsafe extern "C" fn set_bio(ssl: *mut Ssl, bio: *mut Bio, _: *mut Bio) {
        unsafe { (*ssl.cast::<FakeSsl>()).bio = Some(bio.cast()) };
    }

    unsafe extern "C" fn get_error(ssl: *const Ssl, _: c_int) -> c_int {
        unsafe { (*ssl.cast::<FakeSsl>()).wants }
    }

    unsafe extern "C" fn read(ssl: *mut Ssl, buffer: *mut c_void, len: c_int) -> c_int {
        let ssl = unsafe { &mut *ssl.cast::<FakeSsl>() };
        if !ssl.get_data() {
            return -1;
        }
        let buffer = unsafe { slice::from_raw_parts_mut(buffer.cast::<u8>(), len as usize) };
        let n = ssl.data.len().min(buffer.len());
        buffer[..n].copy_from_slice(&ssl.data[..n]);
        ssl.data.drain(..n);
        n as c_int
    }

    unsafe extern "C" fn free(ssl: *mut Ssl) {
        let ssl = unsafe { Box::from_raw(ssl.cast::<FakeSsl>()) };
        drop(unsafe { Box::from_raw(ssl.bio.unwrap()) });
    }

    fn look_up(name: &CStr) -> *mut c_void {
        match name.to_str().unwrap() {
            "OpenSSL_version" => version as *mut c_void,
            "OpenSSL_version_num" => version_num as *mut c_void,
            "BIO_meth_new" => method_new as *mut c_void,
            "BIO_meth_set_read" => set_read as *mut c_void,
            "BIO_meth_set_write" => set_write as *mut c_void,
            "BIO_new" => bio_new as *mut c_void,
            "BIO_set_data" => set_data as *mut c_void,
            "BIO_get_data" => get_data as *mut c_void,
            "SSL_set_bio" => set_bio as *mut c_void,
            "SSL_get_error" => get_error as *mut c_void,
            "SSL_read" => read as *mut c_void,
            "SSL_free" => free as *mut c_void,
            _ => nothing as *mut c_void,
        }
    }

    fn connected() -> (Tls, UnixStream) {
        let openssl = Box::leak(Box::new(unsafe { OpenSsl::find(look_up) }.unwrap()));
        let method = new_method(openssl).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let socket = Arc::new(Socket::new(ours.into()).unwrap());
        let ssl = NonNull::from(Box::leak(Box::<FakeSsl>::default())).cast();
        (
            unsafe {
                Tls::new(openssl, method, ssl, socket, Early::new(&UNLIMITED), UNLIMITED.claim())
            }
            .unwrap(),
            theirs,
        )
    }

    fn records(count: usize, len: u8) -> Vec<u8> {
        [&[len][..], &vec![b'x'; len.into()]].concat().repeat(count)
    }

    fn would_block<T: core::fmt::Debug>(result: io::Result<T>) {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// Reads as a driver does: as long as the transport does not say that the descriptor will tell.
    fn read_on(tls: &mut Tls, size: usize) -> usize {
        let (mut buffer, mut sum) = (vec![0; size], 0);
        while let Ok(n) = tls.read(&mut buffer) {
            sum += n;
            if n < size && !tls.holds_input() {
                break;
            }
        }
        sum
    }

    #[test]
    fn what_is_left_over_does_not_stand_for_what_the_socket_has() {
        let (mut tls, mut theirs) = connected();
        theirs.write_all(&records(3, 100)).unwrap();
        let mut buffer = [0; 1000];
        assert_eq!(tls.read(&mut buffer[..150]).unwrap(), 150);
        assert!(tls.holds_input());
        // This is shown once, at a time when nothing is read.
        theirs.write_all(&records(1, 200)).unwrap();
        assert_eq!(tls.read(&mut buffer).unwrap(), 150);
        assert!(tls.holds_input());
        assert_eq!(tls.read(&mut buffer).unwrap(), 200);
        assert!(!tls.holds_input());
        would_block(tls.read(&mut buffer));
    }

    #[test]
    fn behind_a_full_receive_reading_goes_on_whatever_the_room() {
        for size in [50, 1000, 65_536, 70_000, 1 << 20] {
            let (mut tls, mut theirs) = connected();
            theirs.write_all(&records(1000, 100)).unwrap();
            assert_eq!(read_on(&mut tls, size), 100_000, "{size}");
        }
    }

    #[test]
    fn answers_that_have_no_room_hold_reading_up_until_they_have_left() {
        let (mut tls, mut theirs) = connected();
        let (mut read, mut back, mut held_up) = (0, 0, 0);
        let all = [records(5, 0), records(3, 100)].concat().repeat(200);
        let mut rest = &all[..];
        let mut buffer = vec![0; 1 << 16];
        while back < 1000 * ANSWER {
            if let Ok(n) = theirs.write(rest) {
                rest = &rest[n..];
            }
            read += read_on(&mut tls, 1 << 16);
            assert!(tls.held_output() < HELD + ANSWER);
            // The client takes something at last; what was held up then goes on by itself, without a further byte from it.
            while let Ok(n) = theirs.read(&mut buffer) {
                back += n;
                tls.flush().unwrap();
            }
            held_up += usize::from(tls.is_held_up());
        }
        assert!(rest.is_empty() && held_up > 0, "{} left, held up {held_up} times", rest.len());
        assert_eq!((read, back), (200 * 300, 1000 * ANSWER));
    }

    #[test]
    fn a_connection_at_rest_holds_no_memory_for_records() {
        let (mut tls, mut theirs) = connected();
        theirs.write_all(&[&records(1, 0)[..], &records(9, 255)].concat()).unwrap();
        assert_eq!(read_on(&mut tls, 1000), 9 * 255);
        assert!(tls.flush().unwrap());
        let records = unsafe { tls.records.as_ref() };
        assert_eq!((records.rest.capacity(), records.output.capacity()), (0, 0));
    }
}
