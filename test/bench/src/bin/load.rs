//! load JSON: the client. One thread on one core keeps a server busy for some seconds, compares every byte that comes
//! back with what it must be, and prints what it measured as JSON.
//!
//! The argument is a [`Job`]. All messages are framed beforehand and repeat after a while, so checking the answers is
//! comparing a stream with a known one; only compressed answers are decoded.
#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use flate2::{Decompress, FlushDecompress, Status};
use mod_websocket_bench::{payload::Payload, usage, wire};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    thread::{CpuSet, sched_setaffinity},
    time::Timespec,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};

/// How much is read at a time.
const READ: usize = 256 * 1024;
/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to do.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    /// The server.
    address: SocketAddr,
    /// The path to ask for.
    #[serde(default)]
    path: String,
    task: Task,
    connections: usize,
    /// Messages that a connection sends before it waits for an answer.
    #[serde(default = "one")]
    in_flight: usize,
    /// Bytes of a message.
    #[serde(default)]
    size: usize,
    #[serde(default = "binary")]
    payload: Payload,
    /// Bytes of a fragment; 0 for messages in one frame.
    #[serde(default)]
    fragment: usize,
    /// Use permessage-deflate.
    #[serde(default)]
    deflate: bool,
    /// Use TLS, and trust the certificates in this file.
    ca: Option<String>,
    /// The core to run on.
    core: Option<usize>,
    /// Seconds before and while it is measured.
    warm_up: f64,
    seconds: f64,
    /// The server's processes; those that they started belong to it.
    processes: Vec<u32>,
}

/// What connections are for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Task {
    /// WebSocket messages come back.
    Echo,
    /// The same bytes go to a server that sends them back as they are.
    Mirror,
    /// A new connection each time, with the opening and the closing handshake.
    Handshake,
    /// A new connection each time, with a GET.
    Get,
}

fn one() -> usize {
    1
}

fn binary() -> Payload {
    Payload::Binary
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    /// Messages, or connections, while it was measured.
    messages: u64,
    seconds: f64,
    per_second: f64,
    /// Processor seconds of the server for a million of them.
    server_seconds_per_million: f64,
    /// Those of this program.
    client_seconds_per_million: f64,
    /// The round trip in microseconds, with one connection and one message in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip: Option<RoundTrip>,
}

#[derive(Debug, Serialize)]
struct RoundTrip {
    median: f64,
    p99: f64,
}

/// Framed messages, one after the other, that repeat.
struct Ring {
    bytes: Vec<u8>,
    /// Where each message ends; messages beyond `count` repeat the first ones, so that a batch lies in one piece.
    ends: Vec<usize>,
    count: usize,
}

impl Ring {
    fn new(count: usize, spare: usize, mut append: impl FnMut(&mut Vec<u8>, usize)) -> Self {
        let mut bytes = Vec::new();
        let ends = (0..count + spare).map(|n| {
            append(&mut bytes, n % count);
            bytes.len()
        });
        Self { ends: ends.collect(), count, bytes }
    }

    fn start(&self, n: usize) -> usize {
        if n == 0 { 0 } else { self.ends[n - 1] }
    }

    /// Where the repetition begins.
    fn period(&self) -> usize {
        self.ends[self.count - 1]
    }
}

/// The messages of a job.
struct Script {
    requests: Ring,
    answers: Ring,
    /// The answers' payloads, if those are compressed.
    payloads: Vec<Vec<u8>>,
    /// The longest payload.
    longest: usize,
}

impl Script {
    fn new(job: &Job) -> Self {
        let count =
            if job.size >= 256 * 1024 { 2 } else { 16_usize.next_multiple_of(job.in_flight) };
        let payloads: Vec<_> = (0..count).map(|n| job.payload.make(job.size, n)).collect();
        let text = job.payload.is_text();
        let first = if text { 0x81 } else { 0x82 };
        let requests = Ring::new(count, job.in_flight, |out, n| {
            if job.deflate {
                let packed = wire::deflated(&payloads[n]);
                let key = Some((n as u32 * 0x0101_0101 + 0x1234_5678).to_be_bytes());
                wire::frame(out, first | 0x40, &packed, key);
            } else {
                wire::message(out, text, &payloads[n], job.fragment, n);
            }
        });
        let answers = Ring::new(count, 0, |out, n| match job.task {
            Task::Mirror => {
                out.extend_from_slice(&requests.bytes[requests.start(n)..requests.ends[n]]);
            }
            _ => wire::frame(out, first, &payloads[n], None),
        });
        let longest = payloads.iter().map(Vec::len).max().unwrap_or(0);
        Self { requests, answers, payloads, longest }
    }
}

/// A connection, with or without TLS.
enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(match tls {
            None => Self::Clear(stream),
            Some(config) => {
                let name = "localhost".try_into().expect("a name");
                let client =
                    ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Self::Tls(Box::new(StreamOwned::new(client, stream)))
            }
        })
    }

    fn stream(&self) -> &TcpStream {
        match self {
            Self::Clear(stream) => stream,
            Self::Tls(tls) => &tls.sock,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// Whether TLS holds bytes that the socket did not take.
    fn holds_output(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.conn.wants_write())
    }

    /// The opening handshake.
    fn shake_hands(&mut self, request: &[u8], deflate: bool) -> Result<(), String> {
        let said = |e: io::Error| format!("the handshake failed: {e}");
        let mut sent = 0;
        while sent < request.len() {
            sent += self.write(&request[sent..]).map_err(said)?;
        }
        let mut head = Vec::new();
        let mut buffer = [0; 4096];
        while !head.ends_with(b"\r\n\r\n") {
            let n = self.read(&mut buffer).map_err(said)?;
            if n == 0 {
                return Err(format!("the server hangs up: {}", head.escape_ascii()));
            }
            head.extend_from_slice(&buffer[..n]);
        }
        wire::check_answer(&String::from_utf8_lossy(&head), deflate)
    }
}

/// A connection whose messages come back.
struct Talk {
    wire: Wire,
    /// The message of the ring to be sent next.
    next: usize,
    /// What has to be written: a range of the ring.
    output: (usize, usize),
    /// How many messages may be sent once that is written.
    credit: usize,
    /// Where the answers are: in the ring, and which message ends next.
    at: usize,
    message: usize,
    inflating: Option<Box<Inflating>>,
    sent: Instant,
    waits_to_write: bool,
}

/// What reading compressed answers takes.
struct Inflating {
    decompress: Decompress,
    bytes: Vec<u8>,
    out: Vec<u8>,
}

impl Inflating {
    /// Takes a piece of the stream of answers; how many messages it completed.
    fn read(&mut self, piece: &[u8], script: &Script, message: &mut usize) -> Result<u64, String> {
        self.bytes.extend_from_slice(piece);
        let mut at = 0;
        let mut count = 0;
        loop {
            let rest = &self.bytes[at..];
            let (len, header) = match rest {
                [_, n @ 0..=125, ..] => (usize::from(*n), 2),
                [_, 126, a, b, ..] => (usize::from(u16::from_be_bytes([*a, *b])), 4),
                [_, 127, a, b, c, d, e, f, g, h, ..] => {
                    (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as usize, 10)
                }
                _ => break,
            };
            let Some(payload) = rest.get(header..header + len) else { break };
            let expected = &script.payloads[*message];
            let same = match rest[0] {
                0x81 => payload == expected,
                0xc1 => {
                    self.out.clear();
                    self.out.reserve(script.longest + 64);
                    for input in [payload, &[0, 0, 0xff, 0xff]] {
                        let before = self.decompress.total_in();
                        let flush = FlushDecompress::Sync;
                        let status = self.decompress.decompress_vec(input, &mut self.out, flush);
                        if !matches!(status, Ok(Status::Ok | Status::BufError))
                            || self.decompress.total_in() - before != input.len() as u64
                        {
                            return Err(format!("an answer cannot be inflated: {status:?}"));
                        }
                    }
                    self.out == *expected
                }
                _ => false,
            };
            if !same {
                return Err(format!("a wrong answer: {}", rest[..2].escape_ascii()));
            }
            at += header + len;
            count += 1;
            *message = (*message + 1) % script.payloads.len();
        }
        self.bytes.drain(..at);
        Ok(count)
    }
}

impl Talk {
    /// Writes what there is to write, and what may follow it. `false` if the socket is full.
    fn write(&mut self, script: &Script) -> Result<bool, String> {
        let ring = &script.requests;
        loop {
            if self.output.0 == self.output.1 {
                if self.credit == 0 {
                    return Ok(!self.wire.holds_output());
                }
                let last = self.next + self.credit - 1;
                self.output = (ring.start(self.next), ring.ends[last]);
                self.next = (last + 1) % ring.count;
                self.credit = 0;
            }
            match self.wire.write(&ring.bytes[self.output.0..self.output.1]) {
                Ok(n) => self.output.0 += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(format!("writing failed: {e}")),
            }
        }
    }

    /// Compares a piece of the stream of answers with what it must be; how many messages it completed.
    fn check(&mut self, mut piece: &[u8], script: &Script) -> Result<u64, String> {
        if let Some(inflating) = &mut self.inflating {
            return inflating.read(piece, script, &mut self.message);
        }
        let ring = &script.answers;
        let mut count = 0;
        while !piece.is_empty() {
            let n = piece.len().min(ring.period() - self.at);
            let (now, later) = piece.split_at(n);
            if now != &ring.bytes[self.at..self.at + n] {
                let got = now[..n.min(16)].escape_ascii();
                return Err(format!("a wrong answer at byte {} of the stream: {got}", self.at));
            }
            self.at += n;
            while self.message < ring.count && ring.ends[self.message] <= self.at {
                self.message += 1;
                count += 1;
            }
            if self.at == ring.period() {
                (self.at, self.message) = (0, 0);
            }
            piece = later;
        }
        Ok(count)
    }
}

/// The time that counts, and what is counted in it.
struct Watch<'j> {
    job: &'j Job,
    begin: Instant,
    end: Instant,
    running: Option<(Instant, f64, f64)>,
    last: Instant,
    messages: u64,
    round_trips: Vec<u32>,
}

impl<'j> Watch<'j> {
    fn new(job: &'j Job) -> Self {
        let begin = Instant::now() + Duration::from_secs_f64(job.warm_up);
        let end = begin + Duration::from_secs_f64(job.seconds);
        let last = Instant::now();
        Self { job, begin, end, running: None, last, messages: 0, round_trips: Vec::new() }
    }

    /// The time is `now`, and `count` messages have come; the report when the time is over.
    fn tick(&mut self, now: Instant, count: u64) -> Result<Option<Report>, String> {
        if count > 0 {
            self.last = now;
        } else if now - self.last > PATIENCE {
            return Err("the server does not answer".into());
        }
        match self.running {
            None if now >= self.begin => {
                let (server, client) = self.usage();
                self.running = Some((Instant::now(), server, client));
                self.round_trips.clear();
            }
            None => {}
            Some((since, server, client)) => {
                self.messages += count;
                // A slow scenario is given the time for a few messages.
                if now >= self.end && self.messages > 0 {
                    let seconds = (now - since).as_secs_f64();
                    let (server_now, client_now) = self.usage();
                    let million = self.messages as f64 / 1e6;
                    return Ok(Some(Report {
                        messages: self.messages,
                        seconds,
                        per_second: self.messages as f64 / seconds,
                        server_seconds_per_million: (server_now - server) / million,
                        client_seconds_per_million: (client_now - client) / million,
                        round_trip: self.round_trip(),
                    }));
                }
            }
        }
        Ok(None)
    }

    fn usage(&self) -> (f64, f64) {
        (usage::seconds(&self.job.processes), usage::seconds(&[std::process::id()]))
    }

    fn round_trip(&mut self) -> Option<RoundTrip> {
        let times = &mut self.round_trips;
        times.sort_unstable();
        let at = |part: f64| f64::from(times[(times.len() as f64 * part) as usize]) / 1e3;
        (!times.is_empty()).then(|| RoundTrip { median: at(0.5), p99: at(0.99) })
    }
}

fn tls(job: &Job) -> Result<Option<Arc<ClientConfig>>, String> {
    let Some(file) = &job.ca else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| format!("{file}: {e}"))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| format!("{file}: {e}"))?;
        roots.add(certificate).map_err(|e| format!("{file}: {e}"))?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Some(Arc::new(config)))
}

/// Messages go out and come back on connections that stay.
fn converse(job: &Job) -> Result<Report, String> {
    let script = Script::new(job);
    let config = tls(job)?;
    let request = wire::request(&job.address.to_string(), &job.path, job.deflate);
    let said = |e: io::Error| format!("connecting failed: {e}");
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|e| said(e.into()))?;
    let mut talks = Vec::with_capacity(job.connections);
    for n in 0..job.connections {
        let mut wire = Wire::open(job.address, config.as_ref()).map_err(said)?;
        if job.task == Task::Echo {
            wire.shake_hands(&request, job.deflate)?;
        }
        wire.stream().set_nonblocking(true).map_err(said)?;
        let token = EventData::new_u64(n as u64);
        epoll::add(&epoll, wire.stream(), token, EventFlags::IN).map_err(|e| said(e.into()))?;
        let inflating =
            Inflating { decompress: Decompress::new(false), bytes: Vec::new(), out: Vec::new() };
        talks.push(Talk {
            wire,
            next: 0,
            output: (0, 0),
            credit: job.in_flight,
            at: 0,
            message: 0,
            inflating: job.deflate.then(|| Box::new(inflating)),
            sent: Instant::now(),
            waits_to_write: false,
        });
    }
    let times = job.connections == 1 && job.in_flight == 1;
    let mut watch = Watch::new(job);
    let mut events = Vec::with_capacity(64);
    let mut buffer = vec![0; READ];
    // The first messages.
    let mut ready: Vec<usize> = (0..talks.len()).collect();
    loop {
        let mut count = 0;
        for &n in &ready {
            let talk = &mut talks[n];
            loop {
                match talk.wire.read(&mut buffer) {
                    Ok(0) => return Err("the server has closed a connection".into()),
                    Ok(n) => {
                        let messages = talk.check(&buffer[..n], &script)?;
                        talk.credit += messages as usize;
                        count += messages;
                        if times && messages > 0 {
                            let took = talk.sent.elapsed().as_nanos();
                            watch.round_trips.push(took.try_into().unwrap_or(u32::MAX));
                        }
                        if matches!(talk.wire, Wire::Clear(_)) {
                            break;
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(format!("reading failed: {e}")),
                }
            }
            if times && talk.credit > 0 {
                talk.sent = Instant::now();
            }
            let waits_to_write = !talk.write(&script)?;
            if waits_to_write != talk.waits_to_write {
                talk.waits_to_write = waits_to_write;
                let out = if waits_to_write { EventFlags::OUT } else { EventFlags::empty() };
                let token = EventData::new_u64(n as u64);
                epoll::modify(&epoll, talk.wire.stream(), token, EventFlags::IN | out)
                    .map_err(|e| format!("epoll: {e}"))?;
            }
        }
        if let Some(report) = watch.tick(Instant::now(), count)? {
            return Ok(report);
        }
        events.clear();
        let a_while = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&a_while))
            .map_err(|e| format!("epoll: {e}"))?;
        ready.clear();
        ready.extend(events.iter().map(|event| event.data.u64() as usize));
    }
}

/// A connection that is opened for one question.
struct Visit {
    stream: TcpStream,
    answer: Vec<u8>,
    /// The opening handshake is done, and our Close is sent.
    closing: bool,
}

/// Connections come and go.
fn visit(job: &Job) -> Result<Report, String> {
    let said = |e: io::Error| format!("a connection failed: {e}");
    let host = job.address.to_string();
    let request = match job.task {
        Task::Handshake => wire::request(&host, &job.path, false),
        _ => format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", job.path)
            .into_bytes(),
    };
    let mut close = Vec::new();
    wire::frame(&mut close, 0x88, &[0x03, 0xe8], Some([1, 2, 3, 4]));
    let open = || {
        let mut stream = TcpStream::connect(job.address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        stream.write_all(&request)?;
        Ok(Visit { stream, answer: Vec::new(), closing: false })
    };
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|e| said(e.into()))?;
    let mut visits: VecDeque<Visit> = VecDeque::new();
    for n in 0..job.connections {
        let visit = open().map_err(said)?;
        let token = EventData::new_u64(n as u64);
        epoll::add(&epoll, &visit.stream, token, EventFlags::IN).map_err(|e| said(e.into()))?;
        visits.push_back(visit);
    }
    let mut watch = Watch::new(job);
    let mut events = Vec::with_capacity(64);
    let mut buffer = vec![0; READ];
    loop {
        events.clear();
        let a_while = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&a_while))
            .map_err(|e| format!("epoll: {e}"))?;
        let mut count = 0;
        for event in &events {
            let visit = &mut visits[event.data.u64() as usize];
            let n = match visit.stream.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                Err(e) => return Err(format!("reading failed: {e}")),
            };
            visit.answer.extend_from_slice(&buffer[..n]);
            if job.task == Task::Handshake && !visit.closing && visit.answer.ends_with(b"\r\n\r\n")
            {
                wire::check_answer(&String::from_utf8_lossy(&visit.answer), false)?;
                visit.stream.write_all(&close).map_err(said)?;
                visit.answer.clear();
                visit.closing = true;
            }
            if n > 0 {
                continue;
            }
            let right = match job.task {
                Task::Handshake => visit.closing && visit.answer == [0x88, 2, 0x03, 0xe8],
                _ => {
                    let text = String::from_utf8_lossy(&visit.answer);
                    text.starts_with("HTTP/1.1 200 ")
                        && text.split_once("\r\n\r\n").is_some_and(|(_, b)| b.len() == job.size)
                }
            };
            if !right {
                return Err(format!("a wrong answer: {}", visit.answer.escape_ascii()));
            }
            count += 1;
            *visit = open().map_err(said)?;
            epoll::add(&epoll, &visit.stream, event.data, EventFlags::IN)
                .map_err(|e| said(e.into()))?;
        }
        if let Some(report) = watch.tick(Instant::now(), count)? {
            return Ok(report);
        }
    }
}

fn run() -> Result<String, String> {
    let argument = std::env::args().nth(1).ok_or("usage: load JSON")?;
    let job: Job = serde_json::from_str(&argument).map_err(|e| format!("the job: {e}"))?;
    if let Some(core) = job.core {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).map_err(|e| format!("core {core}: {e}"))?;
    }
    let report = match job.task {
        Task::Echo | Task::Mirror => converse(&job)?,
        Task::Handshake | Task::Get => visit(&job)?,
    };
    serde_json::to_string(&report).map_err(|e| e.to_string())
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(report) => {
            println!("{report}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
