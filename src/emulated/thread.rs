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
/// Shortest time: less than the sleep and the wake-up that it may save.
const SHORTEST_SPIN: Duration = Duration::from_micros(8);
/// After a sleep shorter than this, wake-up included, looking for longer would have paid.
const SHORT_SLEEP: Duration = Duration::from_micros(100);

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
    let alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    let start = Instant::now();
    let base = controller.lock().clock;
    let mut spin = SHORTEST_SPIN;
    while !stop.load(Ordering::Acquire) {
        controller.lock().clock = base + start.elapsed();
        if controller.step(BATCH) > 0 {
            continue;
        }
        let idle_since = Instant::now();
        // On a machine with one core nobody can ring while we look.
        if !alone && spun_into_work(controller, idle_since, spin) {
            continue;
        }
        sleep(controller, stop);
        let short = idle_since.elapsed() < SHORT_SLEEP;
        spin = if short { spin * 4 } else { spin / 2 }.clamp(SHORTEST_SPIN, LONGEST_SPIN);
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
        core.ask_for_doorbells();
        stop.load(Ordering::Acquire) || core.has_work() || core.next_due() != due
    };
    controller.device_wake().sleep_unless(timeout, awake);
}
