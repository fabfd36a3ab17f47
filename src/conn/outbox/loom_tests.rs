//! Every interleaving of senders and the driver: no message is lost, twice or torn, and no wake-up is missed.

use core::fmt;

use loom::thread;

use super::*;
use crate::{
    conn::log::Level,
    proto::{Kind, frame::Opcode},
    sync::check,
};

struct Silence;

impl Log for Silence {
    fn enabled(&self, _: Level) -> bool {
        false
    }
    fn write(&self, _: Level, _: fmt::Arguments<'_>) {}
}

/// A driver that sleeps until it is woken, and a client that takes so much and no more.
#[derive(Default)]
struct Driver {
    woken: Mutex<bool>,
    changed: Condvar,
    /// How much the socket still takes, if there is one.
    room: Option<Mutex<usize>>,
    sent: Mutex<Vec<u8>>,
}

impl Driver {
    fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }

    /// Takes what there is to write; `false` if nothing is.
    fn take(&self, outbox: &Outbox) -> bool {
        let mut taken = Vec::new();
        outbox.take(&mut taken, 0, 0);
        self.sent.lock().unwrap().extend_from_slice(&taken);
        outbox.wrote(taken.len() as u64, 0);
        !taken.is_empty()
    }
}

impl DriverHandle for Driver {
    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pump(&self, _: Instant) {}

    fn socket(&self) -> Option<&dyn WriteSocket> {
        self.room.as_ref().map(|_| self as &dyn WriteSocket)
    }
}

impl WriteSocket for Driver {
    fn write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut room = self.room.as_ref().expect("a socket").lock().unwrap();
        let n = bytes[0].len().min(*room);
        *room -= n;
        self.sent.lock().unwrap().extend_from_slice(&bytes[0][..n]);
        if n == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
    }
}

fn open(queue: usize, room: Option<usize>) -> (Arc<Outbox>, Arc<Driver>) {
    let bounds = Bounds {
        queue,
        timeout: Duration::from_secs(3600),
        compress_from: 0,
        memory: &crate::limits::memory::UNLIMITED,
    };
    let outbox = Arc::new(Outbox::new(bounds, None, Box::new(Silence)));
    let driver = Arc::new(Driver { room: room.map(Mutex::new), ..Driver::default() });
    let handle: Weak<dyn DriverHandle> = Arc::downgrade(&driver) as Weak<dyn DriverHandle>;
    outbox.open(handle);
    outbox.disown(&mut Vec::new());
    (outbox, driver)
}

/// A frame of three bytes.
fn send(outbox: &Outbox, byte: u8) -> Result<(), Refused> {
    outbox.send_message(Kind::Binary, &[byte])
}

#[test]
fn what_is_queued_wakes_a_driver_that_falls_asleep() {
    check(3, || {
        let (outbox, driver) = open(1000, None);
        let senders = [1, 2].map(|byte| {
            let outbox = outbox.clone();
            thread::spawn(move || send(&outbox, byte).unwrap())
        });
        while driver.sent.lock().unwrap().len() < 6 {
            outbox.own();
            while driver.take(&outbox) {}
            outbox.disown(&mut Vec::new());
            let all_here = || driver.sent.lock().unwrap().len() == 6;
            if outbox.fall_asleep(false) && !all_here() {
                driver.sleep();
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        let sent = driver.sent.lock().unwrap();
        assert!(*sent == [0x82, 1, 1, 0x82, 1, 2] || *sent == [0x82, 1, 2, 0x82, 1, 1]);
    });
}

#[test]
fn room_wakes_a_sender_that_waits() {
    check(3, || {
        // Room for one message at a time.
        let (outbox, driver) = open(3, None);
        let sender = thread::spawn({
            let outbox = outbox.clone();
            move || [1, 2].map(|byte| send(&outbox, byte))
        });
        while driver.sent.lock().unwrap().len() < 6 {
            if !driver.take(&outbox) && outbox.fall_asleep(false) {
                driver.sleep();
            }
        }
        assert_eq!(sender.join().unwrap(), [Ok(()); 2]);
    });
}

#[test]
fn the_end_releases_senders_that_wait() {
    check(3, || {
        let (outbox, _driver) = open(3, None);
        send(&outbox, 0).unwrap();
        let senders = [(); 2].map(|()| {
            let outbox = outbox.clone();
            thread::spawn(move || send(&outbox, 1))
        });
        outbox.end("the connection is over");
        for sender in senders {
            assert_eq!(sender.join().unwrap(), Err(Refused::Closing));
        }
    });
}

#[test]
fn a_driver_that_holds_a_message_is_woken_when_a_sender_has_made_room() {
    check(3, || {
        let (outbox, driver) = open(20, Some(1));
        let sender = thread::spawn({
            let (outbox, driver) = (outbox.clone(), driver.clone());
            move || {
                // The client takes what it is sent from now on, and nobody but this thread sees that.
                *driver.room.as_ref().unwrap().lock().unwrap() = 1000;
                outbox.send_control(Opcode::Ping, &[9]).unwrap();
            }
        });
        outbox.own();
        outbox.send_message(Kind::Binary, &[1; 12]).unwrap();
        outbox.flush(&*driver).unwrap();
        let mut held = outbox.receive_message(Some(10)) == Reception::Later;
        outbox.disown(&mut Vec::new());
        while held {
            while outbox.has_to_wait() {
                driver.sleep();
            }
            held = outbox.receive_message(Some(10)) == Reception::Later;
        }
        sender.join().unwrap();
        let sent = driver.sent.lock().unwrap();
        assert_eq!(sent.len() + outbox.lock().unsent(), 17);
    });
}

#[test]
fn nothing_is_queued_behind_a_close() {
    check(3, || {
        let (outbox, driver) = open(1000, None);
        let closers = [(); 2].map(|()| {
            let outbox = outbox.clone();
            thread::spawn(move || outbox.close(&[], "test"))
        });
        let sent = send(&outbox, 1).is_ok();
        let closed = closers.map(|closer| closer.join().unwrap());
        assert!(closed[0] != closed[1]);
        driver.take(&outbox);
        let message: &[u8] = if sent { &[0x82, 1, 1] } else { &[] };
        assert_eq!(*driver.sent.lock().unwrap(), [message, &[0x88, 0]].concat());
    });
}

/// The driver of a service moves from thread to thread; each time it answers, it is the owner and writes itself.
#[test]
fn an_owner_is_never_woken_and_leaves_nothing_unwritten() {
    check(3, || {
        let (outbox, driver) = open(1000, None);
        let at_work = Arc::new(Mutex::new(()));
        let workers = [1, 2].map(|byte| {
            let (outbox, driver, at_work) = (outbox.clone(), driver.clone(), at_work.clone());
            thread::spawn(move || {
                let turn = at_work.lock().unwrap();
                outbox.own();
                send(&outbox, byte).unwrap();
                while driver.take(&outbox) {}
                outbox.disown(&mut Vec::new());
                assert!(outbox.fall_asleep(false));
                drop(turn);
            })
        });
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(driver.sent.lock().unwrap().len(), 6);
        assert!(!*driver.woken.lock().unwrap());
    });
}
