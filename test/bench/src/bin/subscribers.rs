//! subscribers JSON: the clients of a channel, and one that publishes, on one core: it publishes a message, waits until
//! all have it, publishes the next one, and prints what it measured as JSON.
//!
//! The argument is a [`Job`]. Each byte that comes is compared with what it must be.
#![forbid(unsafe_code)]

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use mod_websocket_bench::{payload::Payload, usage, wire};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    net::{AddressFamily, SocketType, connect, socket, sockopt},
    thread::{CpuSet, sched_setaffinity},
    time::Timespec,
};
use serde::{Deserialize, Serialize};

/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many handshakes are under way at a time.
const BATCH: usize = 100;
/// How often the server's memory is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Who publishes, among the events.
const PUBLISHER: u64 = u64::MAX;

/// What to do.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    /// The server.
    address: SocketAddr,
    /// It is `bare_writes`, which knows no protocol.
    #[serde(default)]
    bare: bool,
    /// Where to subscribe, and how many.
    #[serde(default)]
    subscribe: String,
    subscribers: usize,
    /// Each has a number of its own behind its path.
    #[serde(default)]
    numbered: bool,
    /// Where those subscribe who read nothing, and how many.
    #[serde(default)]
    stall: String,
    #[serde(default)]
    stalled: usize,
    /// Where to publish.
    #[serde(default)]
    publish: String,
    /// Bytes of a message.
    size: usize,
    /// Seconds before and while it is measured, and how many messages at least; none at all if both are 0.
    #[serde(default)]
    warm_up: f64,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    messages: u64,
    /// Seconds between all subscribers' being there and the first message.
    quiet: f64,
    /// The core to run on.
    core: Option<usize>,
    /// The server's processes; those that they started belong to it.
    processes: Vec<u32>,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    messages: u64,
    per_second: f64,
    /// Processor microseconds of the server for a message.
    server_us: f64,
    /// From a POST until its answer is there, and until the last subscriber has the message, in microseconds.
    answer: Percentiles,
    last: Percentiles,
    /// KiB that the server's children have before there are subscribers, when all are there, and at most.
    memory: [u64; 3],
    /// What the last POST was answered.
    said: String,
}

#[derive(Debug, Default, Serialize)]
struct Percentiles {
    median: f64,
    p99: f64,
}

impl Percentiles {
    fn of(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let at = |part: usize| {
            times.get(times.len() * part / 100).map_or(0.0, |t| t.as_secs_f64() * 1e6)
        };
        Self { median: at(50), p99: at(99) }
    }
}

struct Subscriber {
    stream: TcpStream,
    /// How much of the message has come.
    got: usize,
}

/// Connects; with a small window for one that reads nothing.
fn open(address: SocketAddr, stalls: bool) -> io::Result<TcpStream> {
    let stream = if stalls {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_recv_buffer_size(&socket, 4096)?;
        connect(&socket, &address)?;
        socket.into()
    } else {
        TcpStream::connect(address)?
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The head of an answer, and nothing behind it.
fn head(stream: &mut TcpStream) -> Result<String, String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(0) => return Err(format!("the server hangs up: {}", head.escape_ascii())),
            Ok(_) => head.push(byte[0]),
            Err(e) => return Err(format!("the handshake failed: {e}")),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Opens `count` connections that are subscribed.
fn subscribe(job: &Job, path: &str, count: usize, stalls: bool) -> Result<Vec<TcpStream>, String> {
    let said = |e: io::Error| format!("a subscriber cannot connect: {e}");
    let host = job.address.to_string();
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let begin = all.len();
        for n in begin..count.min(begin + BATCH) {
            let mut stream = open(job.address, stalls).map_err(said)?;
            let path = if job.numbered { format!("{path}?{n}") } else { path.to_owned() };
            let hello = if job.bare { b"s".to_vec() } else { wire::request(&host, &path, false) };
            stream.write_all(&hello).map_err(said)?;
            all.push(stream);
        }
        for stream in all.iter_mut().skip(begin).filter(|_| !job.bare) {
            wire::check_answer(&head(stream)?, false)?;
        }
    }
    Ok(all)
}

/// Whether an answer to a POST is there; an error if it is no good one.
fn is_answered(answer: &[u8], bare: bool) -> Result<bool, String> {
    if bare {
        return Ok(!answer.is_empty());
    }
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(false) };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if !head.starts_with("HTTP/1.1 20") {
        return Err(format!("the publisher is answered {text:?}"));
    }
    Ok(body.len() == length.unwrap_or(0))
}

fn run(job: &Job) -> Result<Report, String> {
    let said = |e: io::Error| format!("a connection failed: {e}");
    let mut memory = [usage::memory(&job.processes); 3];
    let streams = subscribe(job, &job.subscribe, job.subscribers, false)?;
    // Held until the end.
    let _stalled = subscribe(job, &job.stall, job.stalled, true)?;
    std::thread::sleep(Duration::from_secs_f64(job.quiet));
    memory[1] = usage::memory(&job.processes);
    memory[2] = memory[1];

    let mut publisher = open(job.address, false).map_err(said)?;
    if job.bare {
        publisher.write_all(b"p").map_err(said)?;
    }
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|e| said(e.into()))?;
    let add = |stream: &TcpStream, token| {
        stream.set_nonblocking(true).map_err(said)?;
        epoll::add(&epoll, stream, EventData::new_u64(token), EventFlags::IN)
            .map_err(|e| said(e.into()))
    };
    let mut subscribers = Vec::with_capacity(streams.len());
    for (n, stream) in streams.into_iter().enumerate() {
        add(&stream, n as u64)?;
        subscribers.push(Subscriber { stream, got: 0 });
    }
    add(&publisher, PUBLISHER)?;

    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        job.publish, job.address, job.size
    );
    let (mut events, mut buffer) = (Vec::with_capacity(1024), vec![0; 256 * 1024]);
    let (mut answers, mut lasts) = (Vec::new(), Vec::new());
    let (mut frame, mut request, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now() + Duration::from_secs_f64(job.warm_up);
    let end = begin + Duration::from_secs_f64(job.seconds);
    let (mut measured, mut looked) = (None, Instant::now());
    let mut messages = 0;
    for n in 0.. {
        let now = Instant::now();
        if measured.is_none() && now >= begin {
            measured = Some((Instant::now(), usage::seconds(&job.processes)));
            messages = 0;
            answers.clear();
            lasts.clear();
        }
        if now >= end && messages >= job.messages {
            break;
        }
        if looked.elapsed() > LOOK {
            memory[2] = memory[2].max(usage::memory(&job.processes));
            looked = Instant::now();
        }
        let body = Payload::Ascii.make(job.size, n);
        frame.clear();
        wire::frame(&mut frame, 0x81, &body, None);
        request.clear();
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(&body);
        answer.clear();
        let (mut arrived, mut is_done) = (0, false);
        subscribers.iter_mut().for_each(|subscriber| subscriber.got = 0);
        let out = if job.bare { &frame } else { &request };
        let posted = Instant::now();
        let mut last = posted;
        let mut sent = 0;
        while sent < out.len() {
            match publisher.write(&out[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => return Err(said(e)),
            }
        }
        while !is_done || arrived < subscribers.len() {
            events.clear();
            let a_while = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            epoll::wait(&epoll, spare_capacity(&mut events), Some(&a_while))
                .map_err(|e| said(e.into()))?;
            if events.is_empty() {
                let all = subscribers.len();
                return Err(format!(
                    "message {n} has reached {arrived} of {all}, answered: {is_done}"
                ));
            }
            for event in &events {
                let token = event.data.u64();
                let stream = match subscribers.get_mut(token as usize) {
                    Some(subscriber) if token != PUBLISHER => &mut subscriber.stream,
                    _ => &mut publisher,
                };
                let part = match stream.read(&mut buffer) {
                    Ok(0) => return Err("the server has closed a connection".into()),
                    Ok(n) => &buffer[..n],
                    Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(said(e)),
                };
                if token == PUBLISHER {
                    answer.extend_from_slice(part);
                    is_done = is_answered(&answer, job.bare)?;
                    if is_done {
                        answers.push(posted.elapsed());
                    }
                    continue;
                }
                let subscriber = &mut subscribers[token as usize];
                if !frame[subscriber.got..].starts_with(part) {
                    return Err(format!(
                        "a wrong message: {}",
                        part[..part.len().min(100)].escape_ascii()
                    ));
                }
                subscriber.got += part.len();
                if subscriber.got == frame.len() {
                    arrived += 1;
                    last = Instant::now();
                }
            }
        }
        lasts.push(last - posted);
        messages += 1;
    }
    let (since, before) = measured.unwrap_or((begin, 0.0));
    let seconds = since.elapsed().as_secs_f64();
    let server = usage::seconds(&job.processes) - before;
    Ok(Report {
        messages,
        per_second: messages as f64 / seconds,
        server_us: server * 1e6 / (messages as f64).max(1.0),
        answer: Percentiles::of(&mut answers),
        last: Percentiles::of(&mut lasts),
        memory,
        said: String::from_utf8_lossy(&answer).into_owned(),
    })
}

fn main() -> std::process::ExitCode {
    let report = || {
        let argument = std::env::args().nth(1).ok_or("usage: subscribers JSON")?;
        let job: Job = serde_json::from_str(&argument).map_err(|e| format!("the job: {e}"))?;
        if let Some(core) = job.core {
            let mut set = CpuSet::new();
            set.set(core);
            sched_setaffinity(None, &set).map_err(|e| format!("core {core}: {e}"))?;
        }
        serde_json::to_string(&run(&job)?).map_err(|e| e.to_string())
    };
    match report() {
        Ok(report) => {
            println!("{report}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("subscribers: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
