//! The health of the drives under the target, as its hosts are shown it (Base 5.1.12.1.3).
//!
//! A subsystem's namespaces may lie on several drives, and a host knows only one SMART page of its
//! controller: it holds the worst of each figure, and the sum of what is counted.

use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U64};

use crate::spec::log::{AsyncEvent, AsyncEventType, LogPage, SmartLog};

/// Temperature where no drive knows one, in kelvins: 30 degrees.
const NO_TEMPERATURE: u16 = 303;
/// Spare, and the spare below which it is critical, where no drive tells, in percent.
const NO_SPARE: (u8, u8) = (100, 10);
/// Critical warnings that have an event of their own, and its information (Base figure 151). The
/// loss of spare and the two others that a host is told of as loss of reliability come first.
const EVENTS: [(u8, u8); 3] = [
    (
        SmartLog::WARNING_RELIABILITY
            | SmartLog::WARNING_READ_ONLY
            | SmartLog::WARNING_BACKUP_FAILED,
        0,
    ),
    (SmartLog::WARNING_TEMPERATURE, 1),
    (SmartLog::WARNING_SPARE, 2),
];

/// One page out of those of all drives. The counters of what hosts read and wrote are zero: each
/// controller of the target has its own.
#[must_use]
pub fn worst(drives: &[SmartLog]) -> SmartLog {
    let mut page = SmartLog::new_zeroed();
    page.temperature = U16::new(NO_TEMPERATURE);
    (page.available_spare, page.spare_threshold) = NO_SPARE;
    let hottest = drives.iter().map(|drive| drive.temperature.get()).max();
    // A drive that does not measure its temperature says zero.
    if let Some(kelvins) = hottest.filter(|&kelvins| kelvins > 0) {
        page.temperature = U16::new(kelvins);
    }
    for drive in drives {
        page.critical_warning |= drive.critical_warning;
        page.endurance_warning |= drive.endurance_warning;
        page.percentage_used = page.percentage_used.max(drive.percentage_used);
        let margin =
            |page: &SmartLog| i16::from(page.available_spare) - i16::from(page.spare_threshold);
        if margin(drive) < margin(&page) {
            page.available_spare = drive.available_spare;
            page.spare_threshold = drive.spare_threshold;
        }
        page.warning_minutes = page.warning_minutes.max(drive.warning_minutes);
        page.critical_minutes = page.critical_minutes.max(drive.critical_minutes);
        page.busy_minutes = wide(number(page.busy_minutes).max(number(drive.busy_minutes)));
        page.power_cycles = wide(number(page.power_cycles).max(number(drive.power_cycles)));
        page.power_on_hours = wide(number(page.power_on_hours).max(number(drive.power_on_hours)));
        page.unsafe_shutdowns = sum(page.unsafe_shutdowns, drive.unsafe_shutdowns);
        page.media_errors = sum(page.media_errors, drive.media_errors);
    }
    page
}

/// The events for critical warnings that were not there before.
pub(super) fn events(before: u8, now: u8) -> impl Iterator<Item = AsyncEvent> {
    let new = now & !before;
    EVENTS.iter().filter(move |(bits, _)| new & bits != 0).map(|&(_, information)| AsyncEvent {
        event_type: AsyncEventType::SMART,
        information,
        log_page: LogPage::SMART,
    })
}

/// The critical warnings that an event stands for, as bits of Asynchronous Event Configuration.
pub(super) fn warnings(information: u8) -> u32 {
    EVENTS.iter().find(|(_, known)| *known == information).map_or(0, |(bits, _)| u32::from(*bits))
}

fn number([low, high]: [U64; 2]) -> u128 {
    u128::from(high.get()) << 64 | u128::from(low.get())
}

fn wide(number: u128) -> [U64; 2] {
    [U64::new(number as u64), U64::new((number >> 64) as u64)]
}

/// A drive may say anything: the sum stays at its largest value.
fn sum(one: [U64; 2], other: [U64; 2]) -> [U64; 2] {
    wide(number(one).saturating_add(number(other)))
}

#[cfg(test)]
mod tests {
    use zerocopy::little_endian::U32;

    use super::*;

    fn drive(change: impl FnOnce(&mut SmartLog)) -> SmartLog {
        let mut page = worst(&[]);
        change(&mut page);
        page
    }

    #[test]
    fn without_a_drive_that_tells_nothing_is_wrong() {
        let page = worst(&[]);
        assert_eq!(
            (page.critical_warning, page.available_spare, page.spare_threshold),
            (0, 100, 10)
        );
        assert_eq!(page.temperature.get(), 303);
        let silent = drive(|page| page.temperature = U16::new(0));
        assert_eq!(worst(&[silent]).temperature.get(), 303);
    }

    #[test]
    fn the_worst_of_each_figure_is_shown() {
        let old = drive(|page| {
            page.percentage_used = 90;
            (page.available_spare, page.spare_threshold) = (40, 35);
            page.critical_warning = SmartLog::WARNING_TEMPERATURE;
            page.temperature = U16::new(350);
            page.media_errors = wide(u128::from(u64::MAX));
            page.power_on_hours = wide(50_000);
        });
        let new = drive(|page| {
            (page.available_spare, page.spare_threshold) = (30, 5);
            page.critical_warning = SmartLog::WARNING_READ_ONLY;
            page.temperature = U16::new(310);
            page.media_errors = wide(3);
            page.power_on_hours = wide(2);
            page.warning_minutes = U32::new(7);
        });
        for drives in [[old, new], [new, old]] {
            let page = worst(&drives);
            assert_eq!(page.critical_warning, 0b1010);
            assert_eq!((page.available_spare, page.spare_threshold), (40, 35), "the least margin");
            assert_eq!((page.percentage_used, page.temperature.get()), (90, 350));
            assert_eq!(number(page.media_errors), u128::from(u64::MAX) + 3);
            assert_eq!(number(page.power_on_hours), 50_000);
            assert_eq!(page.warning_minutes.get(), 7);
        }
        let lying = drive(|page| page.media_errors = wide(u128::MAX));
        assert_eq!(number(worst(&[lying, lying]).media_errors), u128::MAX);
    }

    #[test]
    fn only_new_warnings_are_events() {
        let told =
            |before, now| events(before, now).map(|event| event.information).collect::<Vec<_>>();
        assert!(told(0, 0).is_empty());
        assert_eq!(told(0, SmartLog::WARNING_TEMPERATURE), [1]);
        assert!(told(SmartLog::WARNING_TEMPERATURE, SmartLog::WARNING_TEMPERATURE).is_empty());
        assert_eq!(told(0, 0b1_1111), [0, 1, 2]);
        assert_eq!(warnings(0), 0b1_1100);
        assert_eq!(warnings(77), 0);
    }
}
