//! The outbox on sockets and without one, with fakes in the place of both sides.

use std::thread;

use super::{
    queue::{HEADER, KEEP, REST},
    send::LARGE,
    *,
};
use crate::{
    fakes::{Driver, Lines, Wire, bounds, budget, from_us, outbox, outbox_of, wait_until},
    proto::{
        Kind,
        close::{self, CloseReason},
        frame::Opcode,
    },
};

#[test]
fn what_does_not_fit_the_childs_memory_is_not_queued() {
    let memory = budget(128 << 10);
    let (outbox, log) = outbox_of(Bounds { memory, ..bounds(1 << 20) });
    let wire = Wire::new();
    let driver = Driver::new(Some(&wire), || panic!("nobody has to wait"));
    driver.rest(&outbox);
    wire.takes(0);
    assert_eq!(binary(&outbox, &[1; 60_000]), Ok(()));
    assert_eq!(memory.used(), 64 << 10);
    // Pongs count, too.
    while memory.used() == 64 << 10 {
        outbox.send_control(Opcode::Pong, &[0; 125]).unwrap();
    }
    assert_eq!(binary(&outbox, &[1; 60_000]), Err(Refused::Closing));
    assert_eq!((outbox.state(), memory.refused()), (State::Closing, 1));
    assert!(log.has("WS0311: closing with 1013"));
    // What was accepted before leaves all the same.
    wire.takes(usize::MAX);
    outbox.flush(&wire).unwrap();
    let sent = wire.sent();
    assert_eq!(sent[..60_004], [&b"\x82\x7e\xea\x60"[..], &[1; 60_000]].concat());
    assert!(sent.ends_with(&from_us(Opcode::Close, b"\x03\xf5")));
    assert_eq!(memory.used(), 0);
}

fn binary(outbox: &Outbox, payload: &[u8]) -> Result<(), Refused> {
    outbox.send_message(Kind::Binary, payload)
}

/// A binary frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    from_us(Opcode::Binary, payload)
}

/// An open outbox over a socket, at rest.
fn on_socket(queue: usize) -> (Arc<Outbox>, Wire, Arc<Driver>) {
    let (outbox, wire) = (outbox(queue).0, Wire::new());
    let driver = Driver::new(Some(&wire), || panic!("nobody has to wait"));
    driver.rest(&outbox);
    (outbox, wire, driver)
}

/// An open outbox that only its driver can write, at rest.
fn without_socket(queue: usize) -> (Arc<Outbox>, Arc<Driver>) {
    let (outbox, _) = outbox(queue);
    let driver = Driver::new(None, || panic!("nobody has to wait"));
    driver.rest(&outbox);
    (outbox, driver)
}

/// What the driver has to write; all of it leaves.
fn take(outbox: &Outbox) -> Vec<u8> {
    let mut taken = Vec::new();
    outbox.take(&mut taken, 0, 0);
    outbox.wrote(taken.len() as u64, 0);
    taken
}

fn wait_for_sender(outbox: &Outbox) {
    wait_until(|| outbox.lock().waiting > 0);
}

#[test]
fn what_the_owner_sends_leaves_with_one_write() {
    let (outbox, wire, driver) = on_socket(1000);
    outbox.own();
    for payload in [b"1", b"2", b"3"] {
        binary(&outbox, payload).unwrap();
    }
    assert_eq!(wire.sent(), b"");
    assert_eq!(outbox.flush(&wire).unwrap(), (true, true));
    assert_eq!(wire.sent(), [frame(b"1"), frame(b"2"), frame(b"3")].concat());
    assert_eq!((wire.change(|script| script.calls.1), driver.take_wakes()), (1, 0));
    assert_eq!(outbox.flush(&wire).unwrap(), (true, false));
}

#[test]
fn an_owner_that_sends_much_writes_before_its_turn_ends() {
    let (outbox, wire, _driver) = on_socket(1 << 20);
    outbox.own();
    for _ in 0..=KEEP / 1000 + 1 {
        binary(&outbox, &[0; 1000]).unwrap();
        assert!(outbox.lock().bytes.len() < KEEP + 2000);
    }
    assert!(wire.sent().len() >= KEEP);
}

#[test]
fn another_thread_writes_at_once_and_wakes_nobody() {
    let (outbox, wire, driver) = on_socket(1000);
    assert!(outbox.fall_asleep(false));
    binary(&outbox, b"1").unwrap();
    assert_eq!((wire.sent(), driver.take_wakes()), (frame(b"1"), 0));
}

#[test]
fn what_the_socket_does_not_take_wakes_a_driver_asleep_once() {
    let (outbox, wire, driver) = on_socket(1000);
    wire.takes(4);
    binary(&outbox, b"0").unwrap();
    binary(&outbox, b"1").unwrap();
    // It has not said that it sleeps, so it will look.
    assert_eq!((wire.sent(), driver.take_wakes()), (b"\x82\x010\x82".to_vec(), 0));
    assert!(outbox.fall_asleep(true));
    binary(&outbox, b"2").unwrap();
    binary(&outbox, b"3").unwrap();
    assert_eq!(driver.take_wakes(), 1);
    wire.takes(usize::MAX);
    assert_eq!(outbox.flush(&wire).unwrap(), (true, true));
    assert_eq!(wire.sent(), [b"\x011", &frame(b"2")[..], &frame(b"3")].concat());
}

#[test]
fn a_driver_does_not_fall_asleep_over_what_it_has_to_write() {
    let (outbox, driver) = without_socket(1000);
    assert!(outbox.fall_asleep(false));
    binary(&outbox, b"1").unwrap();
    assert_eq!(driver.take_wakes(), 1);
    assert!(!outbox.fall_asleep(false));
    // It hears of room by itself.
    assert!(outbox.fall_asleep(true));
    // Who stays awake needs nobody to wake it.
    assert!(!outbox.fall_asleep(false));
    binary(&outbox, b"1a").unwrap();
    assert_eq!(driver.take_wakes(), 0);
    take(&outbox);
    assert!(outbox.fall_asleep(false));
    binary(&outbox, b"2").unwrap();
    assert_eq!((driver.take_wakes(), take(&outbox)), (1, frame(b"2")));
}

#[test]
fn a_partial_write_goes_on_where_it_stopped() {
    let (outbox, wire, _driver) = on_socket(10_000);
    outbox.own();
    let expected: Vec<u8> = (0..100).flat_map(|n| frame(&[n; 20])).collect();
    for n in 0..100 {
        binary(&outbox, &[n; 20]).unwrap();
    }
    wire.portion(7);
    let mut left = expected.len();
    // The first part is small, the second more than half of what waits.
    for room in [100, 1500] {
        wire.takes(room);
        assert_eq!(outbox.flush(&wire).unwrap(), (false, true));
        assert_eq!(outbox.flush(&wire).unwrap(), (false, false));
        left -= room;
        assert_eq!(outbox.lock().unsent(), left);
        assert_eq!(outbox.summary().bytes_out as usize, expected.len() - left);
    }
    wire.takes(usize::MAX);
    assert_eq!(outbox.flush(&wire).unwrap(), (true, true));
    assert_eq!((wire.sent(), outbox.lock().unsent()), (expected, 0));
}

#[test]
fn a_large_message_is_whole_wherever_the_socket_stops() {
    let payload: Vec<u8> = (0..LARGE + 5).map(|n| n as u8).collect();
    let header = [0x82, 126, (payload.len() >> 8) as u8, payload.len() as u8];
    let expected = [&frame(b"before")[..], &header, &payload, &frame(b"after")].concat();
    for room in [0, 1, 7, 8, 9, 11, 12, 13, 1000, 8 + 4 + LARGE + 5, usize::MAX] {
        let (outbox, wire, _driver) = on_socket(1 << 20);
        wire.takes(0);
        binary(&outbox, b"before").unwrap();
        wire.takes(room);
        binary(&outbox, &payload).unwrap();
        binary(&outbox, b"after").unwrap();
        assert_eq!(wire.change(|script| script.sent.len()), room.min(expected.len()));
        wire.takes(usize::MAX);
        assert!(outbox.flush(&wire).unwrap().0);
        assert_eq!(wire.sent(), expected, "room for {room}");
        let summary = outbox.summary();
        assert_eq!((summary.messages_out, summary.bytes_out), (3, expected.len() as u64));
    }
}

#[test]
fn a_socket_that_fails_ends_the_conversation_and_wakes_the_driver() {
    for size in [1, LARGE] {
        let (outbox, wire, driver) = on_socket(1000);
        wire.breaks();
        binary(&outbox, &vec![0; size]).unwrap();
        assert_eq!((outbox.state(), driver.take_wakes()), (State::Closed, 1));
        assert_eq!(binary(&outbox, b""), Err(Refused::Closing));
    }
}

#[test]
fn a_queue_takes_as_much_as_its_limit_and_then_the_driver_writes() {
    let (outbox, _) = outbox(20);
    let behind = outbox.clone();
    let driver = Driver::new(None, move || assert_eq!(take(&behind).len(), 22));
    driver.rest(&outbox);
    outbox.own();
    binary(&outbox, &[0; 8]).unwrap();
    assert!(outbox.has_room(10, usize::MAX) && !outbox.has_room(11, usize::MAX));
    assert!(outbox.has_room(5, 15) && !outbox.has_room(6, 15));
    binary(&outbox, &[0; 10]).unwrap();
    // One more needs room, and finds it behind the one call.
    binary(&outbox, b"").unwrap();
    assert_eq!(outbox.lock().unsent(), 2);
    take(&outbox);
    assert!(outbox.has_room(1000, 0));
    binary(&outbox, &[0; 100]).unwrap();
}

#[test]
fn there_is_room_for_who_must_not_wait_only_behind_a_message_that_waits() {
    let (outbox, _) = outbox(100);
    let driver = Driver::new(None, || panic!("nobody waits"));
    driver.rest(&outbox);
    outbox.own();
    binary(&outbox, &[0; 48]).unwrap();
    assert_eq!(outbox.receive_message(Some(60)), Reception::Later);
    // To send it would mean to wait.
    assert!(!outbox.has_room(10, usize::MAX));
    take(&outbox);
    outbox.wrote(50, 0);
    assert!(outbox.has_room(10, usize::MAX));
    binary(&outbox, &[0; 10]).unwrap();
}

#[test]
fn without_a_driver_a_full_queue_is_no_reason_to_wait() {
    let (outbox, _) = outbox(20);
    binary(&outbox, &[0; 20]).unwrap();
    assert_eq!(binary(&outbox, b"1"), Err(Refused::Full));
}

#[test]
fn a_client_that_takes_nothing_is_closed_with_1008() {
    let log = Lines::default();
    let bounds = Bounds { timeout: Duration::ZERO, ..bounds(20) };
    let outbox = Outbox::new(bounds, None, Box::new(log.clone()));
    let driver = Driver::new(None, || ());
    driver.rest(&outbox);
    outbox.own();
    binary(&outbox, &[0; 20]).unwrap();
    assert_eq!(binary(&outbox, b"1"), Err(Refused::Closing));
    assert_eq!((outbox.state(), outbox.summary().code), (State::Closing, CloseCode::POLICY));
    assert!(log.has("WS0301"));
    assert!(take(&outbox).ends_with(&from_us(Opcode::Close, b"\x03\xf0")));
}

#[test]
fn who_takes_enough_is_waited_for_longer_than_the_timeout() {
    let timeout = Duration::from_millis(100);
    let bounds = Bounds { timeout, ..bounds(1000) };
    let (outbox, wire) = (Outbox::new(bounds, None, Box::new(Lines::default())), Wire::new());
    let outbox = Arc::new(outbox);
    let (behind, client) = (outbox.clone(), wire.clone());
    let driver = Driver::new(Some(&wire), move || {
        thread::sleep(timeout / 5);
        client.takes(100);
        behind.flush(&client).unwrap();
    });
    driver.rest(&outbox);
    wire.takes(0);
    binary(&outbox, &[0; 990]).unwrap();
    let begun = Instant::now();
    binary(&outbox, &[1; 900]).unwrap();
    assert!(begun.elapsed() > timeout);
}

#[test]
fn a_sender_waits_for_room_until_the_driver_has_made_some() {
    let (outbox, _driver) = without_socket(20);
    binary(&outbox, &[0; 20]).unwrap();
    thread::scope(|scope| {
        let sender = scope.spawn(|| binary(&outbox, b"1"));
        wait_for_sender(&outbox);
        let mut taken = Vec::new();
        outbox.take(&mut taken, 0, 0);
        // What the driver has not got rid of still waits.
        assert_eq!((taken.len(), outbox.lock().unsent()), (22, 22));
        outbox.wrote(2, 20);
        assert_eq!(outbox.lock().unsent(), 20);
        wait_for_sender(&outbox);
        outbox.wrote(20, 0);
        // Long before its time is over.
        wait_until(|| sender.is_finished());
        assert_eq!(sender.join().unwrap(), Ok(()));
    });
    assert_eq!(take(&outbox), frame(b"1"));
}

#[test]
fn a_sender_that_waits_is_released_by_any_end() {
    let close = CloseReason { code: None, text: "" };
    let ends: [&dyn Fn(&Outbox); 3] =
        [&|outbox| outbox.end("test"), &|outbox| assert!(outbox.close(b"", "test")), &|outbox| {
            outbox.receive_close(&close)
        }];
    for end in ends {
        let (outbox, _driver) = without_socket(20);
        binary(&outbox, &[0; 20]).unwrap();
        thread::scope(|scope| {
            let senders = [(); 2].map(|()| scope.spawn(|| binary(&outbox, b"1")));
            wait_until(|| outbox.lock().waiting == 2);
            end(&outbox);
            wait_until(|| senders.iter().all(|sender| sender.is_finished()));
            for sender in senders {
                assert_eq!(sender.join().unwrap(), Err(Refused::Closing));
            }
        });
    }
}

#[test]
fn a_sender_with_a_socket_writes_itself_while_the_driver_is_in_a_callback() {
    let (outbox, wire) = (outbox(20).0, Wire::new());
    let (behind, client) = (outbox.clone(), wire.clone());
    let driver = Driver::new(Some(&wire), move || {
        client.takes(usize::MAX);
        behind.flush(&client).unwrap();
    });
    driver.rest(&outbox);
    wire.takes(0);
    outbox.own();
    binary(&outbox, &[0; 20]).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| binary(&outbox, b"1").unwrap());
    });
    assert_eq!(wire.sent(), [frame(&[0; 20]), frame(b"1")].concat());
}

#[test]
fn a_close_comes_behind_the_data_and_nothing_behind_it() {
    let (outbox, driver) = without_socket(1000);
    binary(&outbox, b"1").unwrap();
    driver.take_wakes();
    assert!(outbox.close(&close::payload(CloseCode::GOING_AWAY), "test"));
    // Awake or not: an answer has to be waited for.
    assert_eq!((outbox.state(), driver.take_wakes()), (State::Closing, 1));
    assert!(!outbox.close(b"", "test"));
    assert_eq!(outbox.close_with(b""), Err(Refused::Closing));
    assert_eq!(binary(&outbox, b"2"), Err(Refused::Closing));
    assert_eq!(outbox.send_control(Opcode::Ping, b""), Err(Refused::Closing));
    assert_eq!(outbox.receive_message(None), Reception::Ignore);
    let close = from_us(Opcode::Close, &close::payload(CloseCode::GOING_AWAY));
    assert_eq!(take(&outbox), [frame(b"1"), close].concat());
    outbox.receive_close(&CloseReason { code: Some(CloseCode::NORMAL), text: "" });
    assert_eq!((outbox.state(), take(&outbox)), (State::Closed, vec![]));
    assert_eq!(outbox.summary().code, CloseCode::GOING_AWAY);
}

#[test]
fn a_close_of_ours_that_never_left_is_1006() {
    for left in [0, 3, 4] {
        let (outbox, wire, _driver) = on_socket(1000);
        wire.takes(left);
        outbox.close(&close::payload(CloseCode::GOING_AWAY), "test");
        outbox.end("lost");
        let code = if left == 4 { CloseCode::GOING_AWAY } else { CloseCode::ABNORMAL };
        assert_eq!(outbox.summary().code, code);
    }
    // The client's has come, whether or not it gets ours.
    let (outbox, _driver) = without_socket(1000);
    outbox.receive_close(&CloseReason { code: Some(CloseCode::NORMAL), text: "" });
    outbox.end("lost");
    assert_eq!(outbox.summary().code, CloseCode::NORMAL);
}

#[test]
fn a_close_before_the_101_is_not_forgotten() {
    let (outbox, log) = outbox(1000);
    binary(&outbox, b"1").unwrap();
    assert!(outbox.close(b"", "test"));
    let driver = Driver::new(None, || ());
    driver.rest(&outbox);
    assert_eq!(outbox.state(), State::Closing);
    assert_eq!(take(&outbox), [frame(b"1"), from_us(Opcode::Close, b"")].concat());
    assert!(log.has("[OPENING] -- test --> [CLOSING]") && !log.has("101 sent"));
}

#[test]
fn control_frames_have_bounds_of_their_own() {
    let (outbox, _driver) = without_socket(20);
    assert_eq!(outbox.send_control(Opcode::Ping, &[0; 126]), Err(Refused::Illegal));
    assert_eq!(outbox.close_with(&[0; 126]), Err(Refused::Illegal));
    assert_eq!(outbox.close_with(b"\x03\xed"), Err(Refused::Illegal));
    binary(&outbox, &vec![0; 20 + KEEP - 1 - HEADER]).unwrap();
    assert_eq!(outbox.lock().unsent(), 20 + KEEP - 1);
    // A little beyond the limit, but no further.
    assert_eq!(outbox.send_control(Opcode::Pong, b"12"), Ok(()));
    assert_eq!(outbox.send_control(Opcode::Pong, b""), Err(Refused::Full));
}

#[test]
fn a_message_waits_until_an_answer_of_its_length_fits() {
    let (outbox, wire, driver) = on_socket(400);
    let receive = |len| outbox.receive_message(Some(len));
    assert_eq!(receive(1000), Reception::Deliver);
    wire.takes(0);
    binary(&outbox, &[0; 98]).unwrap();
    assert_eq!(receive(300), Reception::Deliver);
    assert_eq!(receive(301), Reception::Later);
    assert!(outbox.has_to_wait());
    // It is nobody's fault who does not answer by himself.
    assert_eq!(outbox.receive_message(None), Reception::Deliver);
    assert!(!outbox.has_to_wait());
    assert_eq!(receive(301), Reception::Later);
    driver.take_wakes();
    // What others send goes behind it, but for a control frame.
    outbox.send_control(Opcode::Ping, b"").unwrap();
    wire.takes(2);
    outbox.send_control(Opcode::Ping, b"").unwrap();
    assert_eq!((driver.take_wakes(), outbox.lock().unsent()), (0, 102));
    wire.takes(5);
    outbox.send_control(Opcode::Ping, b"").unwrap();
    assert_eq!((driver.take_wakes(), outbox.lock().unsent()), (1, 99));
    assert!(!outbox.has_to_wait());
    // It was told once.
    outbox.send_control(Opcode::Ping, b"").unwrap();
    assert_eq!(driver.take_wakes(), 0);
    assert_eq!(outbox.summary().messages_in, 3);
    wire.takes(3);
    outbox.send_control(Opcode::Ping, b"").unwrap();
    assert_eq!(receive(300), Reception::Deliver);
    // One that is longer than the queue may become needs an empty one.
    assert_eq!(receive(500), Reception::Later);
    wire.takes(usize::MAX);
    outbox.flush(&wire).unwrap();
    assert!(!outbox.has_to_wait());
    assert_eq!(receive(500), Reception::Deliver);
    wire.takes(0);
    binary(&outbox, &[0; 398]).unwrap();
    assert_eq!(receive(1), Reception::Later);
    outbox.close(b"", "test");
    assert_eq!(receive(1), Reception::Ignore);
    // It does not wait any more.
    assert!(!outbox.has_to_wait());
}

#[test]
fn what_waits_to_be_delivered_comes_before_what_others_send() {
    let (outbox, driver) = without_socket(100);
    binary(&outbox, &[0; 48]).unwrap();
    assert_eq!(outbox.receive_message(Some(60)), Reception::Later);
    driver.take_wakes();
    thread::scope(|scope| {
        // It would fit.
        let sender = scope.spawn(|| binary(&outbox, &[1; 20]));
        wait_for_sender(&outbox);
        let mut taken = Vec::new();
        outbox.take(&mut taken, 0, 0);
        outbox.wrote(20, 30);
        assert!(!outbox.has_to_wait());
        assert_eq!(outbox.receive_message(Some(60)), Reception::Deliver);
        outbox.wrote(30, 0);
        assert_eq!(sender.join().unwrap(), Ok(()));
    });
}

#[test]
fn nobody_waits_when_the_child_ends() {
    let (outbox, log) = outbox(20);
    let driver = Driver::that_ends();
    driver.rest(&outbox);
    outbox.own();
    binary(&outbox, &[0; 20]).unwrap();
    assert_eq!(binary(&outbox, b"1"), Err(Refused::Closing));
    assert_eq!(outbox.summary().code, CloseCode::GOING_AWAY);
    assert!(!log.has("WS0301"));
}

#[test]
fn memory_is_lent_to_who_is_at_work_and_taken_back() {
    let (outbox, _driver) = without_socket(1 << 20);
    let mut spare = Vec::with_capacity(5000);
    outbox.own();
    outbox.lend(&mut spare);
    assert_eq!(spare.capacity(), 0);
    binary(&outbox, b"1").unwrap();
    outbox.disown(&mut spare);
    // It holds something, and keeps no more than that takes.
    assert_eq!(spare.capacity(), 0);
    assert!(outbox.lock().bytes.capacity() < REST);
    take(&outbox);
    outbox.lend(&mut Vec::with_capacity(5000));
    outbox.disown(&mut spare);
    assert_eq!((spare.capacity(), outbox.lock().bytes.capacity()), (5000, 0));
}

#[test]
fn a_disposed_outbox_finds_late_senders_closed() {
    let (outbox, _driver) = without_socket(1000);
    binary(&outbox, b"1").unwrap();
    outbox.end("test");
    outbox.dispose();
    assert_eq!(binary(&outbox, b"2"), Err(Refused::Closing));
    assert_eq!(take(&outbox), b"");
}
