//! A thread that keeps a controller moving.
//!
//! It looks at the doorbells for a short while after each command, for as long as that has paid
//! lately, and then sleeps until a doorbell is rung: an idle controller costs nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::controller::EmulatedController;

/// Commands carried out before answers that wait for a sync get it.
const BATCH: usize = 64;
/// Longest time to look at doorbells before sleeping.
const LONGEST_SPIN: Duration = Duration::from_micros(64);
/// What a sleep that was shorter than [`LONGEST_SPIN`] raises the time to look to, at least.
const FIRST_SPIN: Duration = Duration::from_micros(8);

/// The thread of a controller. It ends when this is dropped, after the command it is at.
#[derive(Debug)]
pub struct ControllerThread {
    controller: Arc<EmulatedController>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControllerThread {
    /// Starts a thread for `controller`. Only one makes sense for each controller.
    ///
    /// # Errors
    /// The system's, if it has no thread to give.
    pub fn spawn(controller: Arc<EmulatedController>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("nvme-emulated".to_owned()).spawn({
            let (controller, stop) = (Arc::clone(&controller), Arc::clone(&stop));
            move || run(&controller, &stop)
        })?;
        Ok(Self { controller, stop, thread: Some(thread) })
    }
}

impl Drop for ControllerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.controller.device_wake().wake();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported by the runtime when it happened.
            drop(thread.join());
        }
    }
}

fn run(controller: &EmulatedController, stop: &AtomicBool) {
    let spins = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let start = Instant::now();
    let base = controller.lock().clock;
    let mut spin = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        controller.lock().clock = base + start.elapsed();
        if controller.step(BATCH) > 0 {
            continue;
        }
        let idle_since = Instant::now();
        if spun_into_work(controller, idle_since, spin) {
            continue;
        }
        // Looking did not pay: less of it next time.
        spin /= 2;
        sleep(controller, stop);
        if spins && idle_since.elapsed() < LONGEST_SPIN {
            spin = (spin * 4).clamp(FIRST_SPIN, LONGEST_SPIN);
        }
    }
}

fn spun_into_work(controller: &EmulatedController, since: Instant, limit: Duration) -> bool {
    while since.elapsed() < limit {
        if controller.has_work() {
            return true;
        }
        std::hint::spin_loop();
    }
    false
}

fn sleep(controller: &EmulatedController, stop: &AtomicBool) {
    let (due, now) = {
        let core = controller.lock();
        (core.next_due(), core.clock)
    };
    let timeout = due.map(|due| {
        let wait = due.saturating_sub(now).as_millis().saturating_add(1);
        u32::try_from(wait).unwrap_or(u32::MAX)
    });
    let awake = || {
        let core = controller.lock();
        stop.load(Ordering::Acquire) || core.has_work() || core.next_due() != due
    };
    controller.device_wake().sleep_unless(timeout, awake);
}
