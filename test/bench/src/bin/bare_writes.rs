//! bare_writes PORT: writes what a publisher sends to all subscribers, one `write` each: what the kernel alone costs.
//!
//! The first byte on a connection says what it is: `s` a subscriber, `p` the publisher, who gets a byte when all is
//! written. With the publisher's end all of them go.
#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use mod_websocket_bench::peer;

fn serve(mut publisher: TcpStream, mut subscribers: Vec<TcpStream>) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = publisher.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        for subscriber in &mut subscribers {
            // They take what they get before there is more.
            subscriber.write_all(&buffer[..n])?;
        }
        publisher.write_all(b".")?;
    }
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind(peer::address())?;
    let mut subscribers = Vec::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut what = [0];
        if stream.read(&mut what)? == 0 {
            continue;
        }
        stream.set_nodelay(true)?;
        if what == *b"p" {
            // It may go at any time, and its subscribers with it.
            let _ = serve(stream, std::mem::take(&mut subscribers));
        } else {
            subscribers.push(stream);
        }
    }
}
