//! mirror PORT: writes back what it reads, on one thread, without any protocol.
#![forbid(unsafe_code)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use mod_websocket_bench::peer;
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
};

/// How much is read at a time, as the module does.
const READ: usize = 64 * 1024;

struct Client {
    stream: TcpStream,
    /// What was read but not written: nothing more is read until it is.
    rest: Vec<u8>,
}

impl Client {
    /// Writes and reads once each; `false` at the end.
    fn run(&mut self, buffer: &mut [u8]) -> bool {
        if !self.rest.is_empty() {
            match self.stream.write(&self.rest) {
                Ok(n) => drop(self.rest.drain(..n)),
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
            return true;
        }
        let n = match self.stream.read(buffer) {
            Ok(0) => return false,
            Ok(n) => n,
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        };
        let written = match self.stream.write(&buffer[..n]) {
            Ok(written) => written,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return false,
        };
        self.rest.extend_from_slice(&buffer[written..n]);
        true
    }
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind(peer::address())?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(u64::MAX), EventFlags::IN)?;
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut events = Vec::with_capacity(64);
    let mut buffer = vec![0; READ];
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let token = event.data.u64();
            if token == u64::MAX {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let free = clients.iter().position(Option::is_none).unwrap_or(clients.len());
                epoll::add(&epoll, &stream, EventData::new_u64(free as u64), EventFlags::IN)?;
                let client = Some(Client { stream, rest: Vec::new() });
                if free == clients.len() {
                    clients.push(client)
                } else {
                    clients[free] = client
                }
                continue;
            }
            let slot = &mut clients[token as usize];
            let Some(client) = slot else { continue };
            let waited = !client.rest.is_empty();
            if !client.run(&mut buffer) {
                *slot = None;
                continue;
            }
            let waits = !client.rest.is_empty();
            if waits != waited {
                let flags = if waits { EventFlags::OUT } else { EventFlags::IN };
                epoll::modify(&epoll, &client.stream, EventData::new_u64(token), flags)?;
            }
        }
    }
}
