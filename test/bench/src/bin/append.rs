//! append: the processor time that publishing takes besides HTTP, with 0, 1 and 4 children that sleep until something
//! is published.
//!
//! A child is a hub with its thread here: the kernel wakes threads and processes alike. Each figure is the median of
//! many; the publisher's own time counts, and not that of those it wakes.

use std::{hint::black_box, sync::Arc, thread, time::Duration};

use mod_websocket::channel::{
    Kind,
    broker::{Broker as _, NewMessage},
    feed::Feed,
    hub::Hub,
    settings::MEMORY,
    store::{self, Store},
};
use rustix::time::{ClockId, clock_gettime};

const CHANNEL: &str = "room/kitchen";
const BODY: &[u8; 50] = b"fifty bytes of text, as a short message has them..";
const TIMES: usize = 2000;
/// Until those who were woken sleep again.
const PAUSE: Duration = Duration::from_micros(300);

/// The processor time of this thread, in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The median of what `f` takes, in microseconds.
fn median(f: impl Fn(), pause: impl Fn()) -> f64 {
    let mut times: Vec<u64> = (0..TIMES)
        .map(|_| {
            pause();
            let begin = now();
            f();
            now() - begin
        })
        .collect();
    times.sort_unstable();
    times[TIMES / 2] as f64 / 1e3
}

fn main() {
    let mapping = store::map(MEMORY, [1, 2]).expect("shared memory");
    // SAFETY: it was just mapped.
    let store = unsafe { Store::at(&mapping, std::process::id(), |_| true) };
    let (kind, media) = (Kind::Text, "text/plain");
    let message = NewMessage { kind, channel: CHANNEL, media, body: BODY };
    let publish = || {
        black_box(store.publish(&message, Duration::from_secs(1))).expect("nobody else publishes");
    };
    let wait = || thread::sleep(PAUSE);
    let empty = median(|| (), wait);
    let begin = now();
    for _ in 0..TIMES {
        publish();
    }
    let row = (now() - begin) as f64 / 1e3 / TIMES as f64;
    println!("{{\"in a row\":{row:.2}");
    let mut children = 0;
    for wanted in [0, 1, 4] {
        while children < wanted {
            let line = Box::leak(Box::default());
            let hub = Hub::new(store, line, Box::new(|| ()));
            let feed = Arc::new(Feed::silent());
            // It stays until the end.
            hub.subscribe(&[CHANNEL.to_owned()], &feed).expect("a thread can be started");
            children += 1;
        }
        println!(",\"{wanted}\":{:.2}", median(publish, wait) - empty);
    }
    println!("}}");
}
