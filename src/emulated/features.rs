//! Features: the settings that a host reads and writes (Base 5.1.25 and 5.2.26).

use super::controller::Settings;
use super::identify::POWER_STATES;
use crate::spec::command::{Feature, QueueCounts};
use crate::spec::log::{NOTIFY_FIRMWARE_ACTIVATION, NOTIFY_NAMESPACE_ATTRIBUTES, NOTIFY_SMART};
use crate::spec::status::StatusCode;

/// The features of one controller and their values.
#[derive(Debug)]
pub(super) struct Features(Vec<Value>);

#[derive(Debug)]
struct Value {
    feature: Feature,
    current: u32,
    default: u32,
    /// Bits that a host may set.
    settable: u32,
}

impl Features {
    /// The features of a controller after a reset.
    pub(super) fn new(settings: &Settings) -> Self {
        let queues = u32::from(settings.io_queues);
        let granted = QueueCounts { submission: queues, completion: queues }.to_dword();
        let mut features = vec![
            Value::new(Feature::ARBITRATION, 0, 0xffff_ff07),
            Value::new(Feature::POWER_MANAGEMENT, 0, 0x1f),
            Value::new(Feature::AUTONOMOUS_POWER_STATES, 0, 1),
            Value::new(Feature::TEMPERATURE_THRESHOLD, 343, 0x003f_ffff),
            Value::new(Feature::ERROR_RECOVERY, 0, 0xffff),
            Value::new(Feature::NUMBER_OF_QUEUES, granted, u32::MAX),
            Value::new(Feature::INTERRUPT_COALESCING, 0, 0xffff),
            Value::new(Feature::WRITE_ATOMICITY, 0, 1),
            Value::new(
                Feature::ASYNC_EVENT_CONFIGURATION,
                0,
                NOTIFY_SMART | NOTIFY_NAMESPACE_ATTRIBUTES | NOTIFY_FIRMWARE_ACTIVATION,
            ),
        ];
        if settings.volatile_cache {
            let enabled = u32::from(settings.cache_enabled);
            features.push(Value::new(Feature::VOLATILE_WRITE_CACHE, enabled, 1));
        }
        Self(features)
    }

    /// Whether completed writes may be lost before a flush.
    pub(super) fn write_cache_enabled(&self) -> bool {
        self.current(Feature::VOLATILE_WRITE_CACHE) == Some(1)
    }

    /// Whether the host wants to be told of the events in `bits`.
    pub(super) fn notifies(&self, bits: u32) -> bool {
        self.current(Feature::ASYNC_EVENT_CONFIGURATION).is_some_and(|value| value & bits != 0)
    }

    fn current(&self, feature: Feature) -> Option<u32> {
        let value = self.0.iter().find(|value| value.feature == feature)?;
        Some(value.current)
    }

    /// Get Features with selection `select`.
    pub(super) fn get(&self, feature: Feature, select: u8) -> Result<u32, StatusCode> {
        /// Capability: the host may set it.
        const CHANGEABLE: u32 = 1 << 2;
        let value = self.0.iter().find(|value| value.feature == feature);
        let value = value.ok_or(StatusCode::INVALID_FIELD)?;
        match select {
            0 => Ok(value.current),
            // Nothing can be saved, so that the saved value is the default.
            1 | 2 => Ok(value.default),
            3 if value.settable != 0 => Ok(CHANGEABLE),
            3 => Ok(0),
            _ => Err(StatusCode::INVALID_FIELD),
        }
    }

    /// Set Features; the number of queues is what it was, whatever is asked for.
    pub(super) fn set(&mut self, feature: Feature, wanted: u32) -> Result<u32, StatusCode> {
        let value = self.0.iter_mut().find(|value| value.feature == feature);
        let value = value.ok_or(StatusCode::INVALID_FIELD)?;
        if feature == Feature::NUMBER_OF_QUEUES {
            if wanted & 0xffff == 0xffff || wanted >> 16 == 0xffff {
                return Err(StatusCode::INVALID_FIELD);
            }
            return Ok(value.current);
        }
        let states = u32::from(POWER_STATES);
        let absent = feature == Feature::POWER_MANAGEMENT && wanted >= states;
        if wanted & !value.settable != 0 || absent {
            return Err(StatusCode::INVALID_FIELD);
        }
        value.current = wanted;
        Ok(0)
    }
}

impl Value {
    fn new(feature: Feature, default: u32, settable: u32) -> Self {
        Self { feature, current: default, default, settable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_and_checked() {
        let mut features = Features::new(&Settings::default());
        assert!(features.write_cache_enabled());
        assert_eq!(features.set(Feature::VOLATILE_WRITE_CACHE, 0), Ok(0));
        assert!(!features.write_cache_enabled());
        assert_eq!(features.get(Feature::VOLATILE_WRITE_CACHE, 0), Ok(0));
        assert_eq!(features.get(Feature::VOLATILE_WRITE_CACHE, 1), Ok(1));
        assert_eq!(features.get(Feature::VOLATILE_WRITE_CACHE, 3), Ok(4));
        assert_eq!(features.set(Feature::VOLATILE_WRITE_CACHE, 2), Err(StatusCode::INVALID_FIELD));
        assert_eq!(features.get(Feature(0x77), 0), Err(StatusCode::INVALID_FIELD));
        let settings = Settings { volatile_cache: false, ..Settings::default() };
        let features = Features::new(&settings);
        assert!(features.get(Feature::VOLATILE_WRITE_CACHE, 0).is_err());
        assert!(!features.write_cache_enabled());
    }
}
