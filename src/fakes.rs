//! What the tests of the core put in the place of a socket, a client, a plugin and a log: each does what its script says,
//! and keeps what it is given.

use core::fmt;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    conn::{
        callbacks::Callbacks,
        endpoint::{Endpoint, Peer, Relayed, Sink},
        log::{Level, Log},
        outbox::{Bounds, DriverHandle, Outbox, WriteSocket},
        session::{Limits, Session},
    },
    driver::{Transport, conn_io::ConnIo, plain},
    limits::memory::{self, Budget},
    os::{Interest, Readiness, Waker},
    proto::{Kind, Version, frame::Opcode},
    sync::Lock as _,
};

/// How long a test waits for what another thread does; only one that fails waits so long.
pub(crate) const LONG: Duration = Duration::from_secs(10);

/// Waits until `is_so`, which nobody tells of.
#[track_caller]
pub(crate) fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "what is waited for does not come");
        std::thread::yield_now();
    }
}

/// Locks what a test that has failed may have left locked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.acquire()
}

/// A value that threads wait for.
#[derive(Debug, Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    pub(crate) fn change<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let result = f(&mut *lock(&self.value));
        self.changed.notify_all();
        result
    }

    /// Waits until `f` says `Some`.
    #[track_caller]
    pub(crate) fn wait_for<R>(&self, mut f: impl FnMut(&mut T) -> Option<R>) -> R {
        let deadline = Instant::now() + LONG;
        let mut value = lock(&self.value);
        loop {
            if let Some(result) = f(&mut *value) {
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "what is waited for does not come");
            (value, _) = self.changed.wait_timeout(value, left).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// A descriptor that nobody waits for.
pub(crate) fn no_descriptor() -> BorrowedFd<'static> {
    static NOTHING: OnceLock<File> = OnceLock::new();
    NOTHING.get_or_init(|| File::open("/dev/null").unwrap()).as_fd()
}

/// A log that keeps its lines, those of traces apart.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Whether there is a line with `part`.
    pub(crate) fn has(&self, part: &str) -> bool {
        self.count(part) > 0
    }

    /// How many lines have `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        lock(&self.0).iter().filter(|line| line.contains(part)).count()
    }
}

impl Log for Lines {
    fn enabled(&self, _: Level) -> bool {
        true
    }

    fn write(&self, _: Level, line: fmt::Arguments<'_>) {
        lock(&self.0).push(line.to_string());
    }
}

/// Bounds of which none is reached but that of the queue.
pub(crate) fn bounds(queue: usize) -> Bounds {
    Bounds { queue, timeout: 3 * LONG, compress_from: usize::MAX, memory: &memory::UNLIMITED }
}

/// Memory of so many bytes for connections.
pub(crate) fn budget(bytes: usize) -> &'static Budget {
    Box::leak(Box::new(Budget::new(bytes)))
}

/// An outbox that the calling thread owns, as it is before the 101.
pub(crate) fn outbox(queue: usize) -> (Arc<Outbox>, Lines) {
    outbox_of(bounds(queue))
}

/// The same with other bounds.
pub(crate) fn outbox_of(bounds: Bounds) -> (Arc<Outbox>, Lines) {
    let log = Lines::default();
    (Arc::new(Outbox::new(bounds, None, Box::new(log.clone()))), log)
}

/// A session without extensions.
pub(crate) fn session() -> Session {
    session_of(&memory::UNLIMITED)
}

/// One that takes its memory from `memory`.
pub(crate) fn session_of(memory: &'static Budget) -> Session {
    let limits =
        Limits { version: Version::V13, max_message: 1 << 20, allow_reserved: false, memory };
    Session::new(limits, None)
}

/// A frame as a client sends it, with a mask of zeroes.
pub(crate) fn from_client(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode as u8];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A short frame as we send it.
pub(crate) fn from_us(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[0x80 | opcode as u8, payload.len() as u8], payload].concat()
}

/// What a read finds.
#[derive(Debug)]
pub(crate) enum Read {
    /// These bytes, of which a smaller buffer leaves the rest.
    Bytes(Vec<u8>),
    /// Work that came to nothing.
    Interrupted,
    /// The end of the stream, for ever.
    End,
    /// An error, for ever.
    Reset,
    /// A bug in the transport.
    Panic,
}

/// How a transport and its client behave.
#[derive(Debug, Default)]
pub(crate) struct Script {
    reads: VecDeque<Read>,
    /// How many bytes are taken until there is room again.
    room: usize,
    /// The most that one write takes; 0 for any number.
    portion: usize,
    /// Writing fails.
    broken: bool,
    /// Bytes that were taken and stay inside until somebody flushes and there is room.
    holds: bool,
    held: Vec<u8>,
    /// It does not say that it does, as httpd's filters.
    is_silent: bool,
    /// What the client has got.
    pub(crate) sent: Vec<u8>,
    /// How often was read, and written.
    pub(crate) calls: (usize, usize),
    /// Our direction was ended.
    pub(crate) ended: bool,
    /// The transport is gone.
    pub(crate) dropped: bool,
}

/// What another thread does.
type Meanwhile = Box<dyn FnOnce() + Send>;

/// A transport whose other end the test holds. Its descriptor shows that the script has got longer.
#[derive(Clone)]
pub(crate) struct Wire {
    script: Arc<Watched<Script>>,
    waker: Arc<Waker>,
    /// What happens elsewhere while the transport flushes next.
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

/// Ends the stream if the test fails, so that nobody waits for what will not come.
pub(crate) struct EndOnFailure(pub(crate) Wire);

impl Drop for EndOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.says(Read::End);
        }
    }
}

/// The driver's end of a [`Wire`].
struct Plug(Wire);

impl Wire {
    /// A client that reads everything and says nothing.
    pub(crate) fn new() -> Self {
        let script = Script { room: usize::MAX, ..Script::default() };
        let waker = Waker::new().expect("a descriptor");
        Self {
            script: Arc::new(Watched::new(script)),
            waker: Arc::new(waker),
            meanwhile: Arc::default(),
        }
    }

    /// The transport.
    pub(crate) fn transport(&self) -> Box<dyn Transport> {
        Box::new(Plug(self.clone()))
    }

    /// A `ConnIo` over it, whose outbox has a queue of `queue` bytes.
    pub(crate) fn io(&self, queue: usize) -> (ConnIo, Arc<Outbox>, Lines) {
        self.io_of(bounds(queue))
    }

    /// A `ConnIo` over it, whose outbox has these bounds.
    pub(crate) fn io_of(&self, bounds: Bounds) -> (ConnIo, Arc<Outbox>, Lines) {
        let (outbox, log) = outbox_of(bounds);
        (ConnIo::new(self.transport(), outbox.clone()), outbox, log)
    }

    /// Reads find this next.
    pub(crate) fn says(&self, read: Read) {
        self.script.change(|script| script.reads.push_back(read));
        self.waker.wake();
    }

    /// A client sends a frame.
    pub(crate) fn frame(&self, opcode: Opcode, payload: &[u8]) {
        self.says(Read::Bytes(from_client(opcode, payload)));
    }

    /// The client takes so many more bytes and no more.
    pub(crate) fn takes(&self, room: usize) {
        self.script.change(|script| script.room = room);
        self.waker.wake();
    }

    pub(crate) fn change<R>(&self, f: impl FnOnce(&mut Script) -> R) -> R {
        self.script.change(f)
    }

    /// Each write takes so many bytes at most.
    pub(crate) fn portion(&self, portion: usize) {
        self.script.change(|script| script.portion = portion);
    }

    /// The transport keeps what it takes until it is flushed.
    pub(crate) fn holds(&self) {
        self.script.change(|script| script.holds = true);
    }

    /// The same, and that does not count as unsent.
    pub(crate) fn holds_silently(&self) {
        self.script.change(|script| (script.holds, script.is_silent) = (true, true));
    }

    /// Another thread does this while the transport is flushed the next time.
    pub(crate) fn during_flush(&self, f: impl FnOnce() + Send + 'static) {
        *lock(&self.meanwhile) = Some(Box::new(f));
    }

    /// Writing fails from now on.
    pub(crate) fn breaks(&self) {
        self.script.change(|script| script.broken = true);
    }

    /// What the client has got since this was asked last.
    pub(crate) fn sent(&self) -> Vec<u8> {
        self.script.change(|script| core::mem::take(&mut script.sent))
    }

    /// Waits until the script is as `f` says.
    #[track_caller]
    pub(crate) fn wait_for<R>(&self, f: impl FnMut(&mut Script) -> Option<R>) -> R {
        self.script.wait_for(f)
    }

    /// Waits until the client has got `expected`, and no more.
    #[track_caller]
    pub(crate) fn expect(&self, expected: &[u8]) {
        self.wait_for(|script| (script.sent.len() >= expected.len()).then_some(()));
        assert_eq!(self.sent(), expected);
    }
}

impl Script {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls.1 += 1;
        if self.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let most = if self.portion == 0 { usize::MAX } else { self.portion };
        let n = bytes.len().min(self.room).min(most);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= n;
        self.sent.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls.0 += 1;
        assert!(self.calls.0 < 100_000, "reading has no end");
        match self.reads.pop_front() {
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(Read::Bytes(mut bytes)) => {
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes.drain(..n);
                if !bytes.is_empty() {
                    self.reads.push_front(Read::Bytes(bytes));
                }
                Ok(n)
            }
            Some(Read::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(Read::End) => {
                self.reads.push_front(Read::End);
                Ok(0)
            }
            Some(Read::Reset) => {
                self.reads.push_front(Read::Reset);
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Some(Read::Panic) => panic!("as the script says"),
        }
    }
}

impl Transport for Plug {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.waker.clear();
        self.0.change(|script| script.read(buffer))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.change(|script| {
            if script.holds {
                script.held.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            script.send(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<bool> {
        if let Some(f) = lock(&self.0.meanwhile).take() {
            std::thread::scope(|scope| {
                scope.spawn(f);
            });
        }
        self.0.change(|script| {
            while !script.held.is_empty() {
                let held = core::mem::take(&mut script.held);
                let sent = script.send(&held);
                script.held = held;
                match sent {
                    Ok(n) => script.held.drain(..n),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(e) => return Err(e),
                };
            }
            Ok(true)
        })
    }

    fn holds_input(&self) -> bool {
        // As a stream of records: what one read leaves, the descriptor does not show.
        true
    }

    fn socket(&self) -> Option<Arc<plain::Socket>> {
        None
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.waker.as_fd()
    }

    fn retry(&self) -> Option<Duration> {
        // The descriptor does not show that there is room.
        Some(Duration::from_millis(1))
    }

    fn held_output(&self) -> usize {
        self.0.change(|script| if script.is_silent { 0 } else { script.held.len() })
    }

    fn end_output(&mut self) {
        self.0.change(|script| script.ended = true);
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.0.change(|script| script.dropped = true);
    }
}

/// A socket that any thread may write to.
impl WriteSocket for Wire {
    fn write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = bytes.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.change(|script| script.send(&bytes))
    }
}

/// A driver of which only the outbox's part is there.
pub(crate) struct Driver {
    /// A socket that any thread may write to.
    socket: Option<Wire>,
    wakes: AtomicUsize,
    /// What is done when a sender wants room.
    pump: Box<dyn Fn() + Send + Sync>,
    /// Whether the child ends.
    ends: bool,
}

impl Driver {
    pub(crate) fn new(socket: Option<&Wire>, pump: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let (socket, pump) = (socket.cloned(), Box::new(pump));
        Arc::new(Self { socket, wakes: AtomicUsize::new(0), pump, ends: false })
    }

    /// One whose child ends.
    pub(crate) fn that_ends() -> Arc<Self> {
        let wakes = AtomicUsize::new(0);
        Arc::new(Self { socket: None, wakes, pump: Box::new(|| ()), ends: true })
    }

    /// Takes an outbox over; no thread is at work on it.
    pub(crate) fn rest(self: &Arc<Self>, outbox: &Outbox) {
        let driver: Weak<dyn DriverHandle> = Arc::<Self>::downgrade(self);
        outbox.open(driver);
        outbox.disown(&mut Vec::new());
    }

    /// How often it was woken since this was asked last.
    pub(crate) fn take_wakes(&self) -> usize {
        self.wakes.swap(0, Ordering::SeqCst)
    }
}

impl DriverHandle for Driver {
    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }

    fn pump(&self, deadline: Instant) {
        if Instant::now() < deadline {
            (self.pump)();
        }
    }

    fn socket(&self) -> Option<&dyn WriteSocket> {
        self.socket.as_ref().map(|wire| wire as &dyn WriteSocket)
    }

    fn is_ending(&self) -> bool {
        self.ends
    }
}

/// What an endpoint has been told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) messages: Vec<(Kind, Vec<u8>)>,
    /// How often it was told of the end.
    pub(crate) closed: usize,
}

/// What is done with a message.
type Answer = Box<dyn Fn(&[u8]) + Send + Sync>;

/// An endpoint that keeps what it gets, and answers as it is told.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    told: Arc<Watched<Told>>,
    answer: Option<Arc<Answer>>,
    sink: Option<Arc<dyn Sink>>,
    peer: Option<Arc<dyn Peer>>,
    callbacks: Option<Arc<Callbacks>>,
}

impl Recorder {
    pub(crate) fn answering(answer: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self { answer: Some(Arc::new(Box::new(answer))), ..Self::default() }
    }

    /// One that sends every message back.
    pub(crate) fn echo(outbox: &Arc<Outbox>) -> Self {
        let outbox = outbox.clone();
        Self::answering(move |data| {
            let _ = outbox.send_message(Kind::Binary, data);
        })
    }

    pub(crate) fn with_peer(peer: Arc<impl Peer + 'static>) -> Self {
        Self { peer: Some(peer.clone()), ..Self::with_sink(peer) }
    }

    pub(crate) fn with_sink(sink: Arc<impl Sink + 'static>) -> Self {
        Self { sink: Some(sink), ..Self::default() }
    }

    /// What it does with a message is done in a callback of this library.
    pub(crate) fn of(self, library: &str) -> Self {
        Self { callbacks: Some(Arc::new(Callbacks::new(library.into()))), ..self }
    }

    pub(crate) fn told<R>(&self, f: impl FnOnce(&mut Told) -> R) -> R {
        self.told.change(f)
    }

    /// The payloads of the messages so far.
    pub(crate) fn payloads(&self) -> Vec<Vec<u8>> {
        self.told(|told| told.messages.iter().map(|(_, data)| data.clone()).collect())
    }

    pub(crate) fn closed(&self) -> usize {
        self.told(|told| told.closed)
    }

    #[track_caller]
    pub(crate) fn wait_for<R>(&self, f: impl FnMut(&mut Told) -> Option<R>) -> R {
        self.told.wait_for(f)
    }
}

impl Endpoint for Recorder {
    fn message(&self, kind: Kind, data: &mut [u8]) {
        self.told(|told| told.messages.push((kind, data.to_vec())));
        match (&self.answer, &self.callbacks) {
            (Some(answer), Some(callbacks)) => callbacks.run(|| answer(data)),
            (Some(answer), None) => answer(data),
            (None, _) => (),
        }
    }

    fn callbacks(&self) -> Option<&Callbacks> {
        self.callbacks.as_deref()
    }

    fn closed(&self) {
        self.told(|told| told.closed += 1);
    }

    fn sink(&self) -> Option<&dyn Sink> {
        self.sink.as_deref()
    }

    fn peer(&self) -> Option<&dyn Peer> {
        self.peer.as_deref()
    }
}

/// A peer for whom something waits until it is given up.
pub(crate) struct StuckPeer {
    /// The first one has no room.
    sockets: [UnixStream; 2],
    /// Until then it takes some of it again and again; later than any test that does not fail.
    trickles: Option<Instant>,
    /// When it took some last, until it is given up.
    seen: Mutex<Option<Duration>>,
}

impl StuckPeer {
    pub(crate) fn new(trickles: bool) -> Arc<Self> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 4096]).is_ok() {}
        let trickles = trickles.then(|| Instant::now() + LONG);
        Arc::new(Self { sockets: [ours, theirs], trickles, seen: Mutex::new(Some(Duration::ZERO)) })
    }

    pub(crate) fn is_given_up(&self) -> bool {
        lock(&self.seen).is_none()
    }
}

impl Sink for StuckPeer {
    fn is_crowded(&self) -> bool {
        false
    }
}

impl Peer for StuckPeer {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.sockets[0].as_fd()
    }
    fn note(&self, _: Readiness) {}
    fn relay(&self, _: &mut [u8]) -> Relayed {
        Relayed { again: false, paused: false, settled: self.is_given_up() }
    }
    fn interest(&self) -> Interest {
        Interest { read: false, write: !self.is_given_up() }
    }
    fn check(&self, now: Duration, timeout: Duration) -> bool {
        let mut seen = lock(&self.seen);
        if self.trickles.is_some_and(|until| Instant::now() < until) {
            *seen = seen.map(|_| now);
        }
        let gives_up = seen.is_some_and(|seen| now - seen >= timeout);
        if gives_up {
            *seen = None;
        }
        gives_up
    }
    fn finish(&self, _: &mut [u8]) -> bool {
        true
    }
}
