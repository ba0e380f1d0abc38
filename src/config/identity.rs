//! Identities of devices.

use std::collections::HashMap;

use toml::Spanned;
use uuid::Uuid;

use super::check::Checker;

impl Checker<'_> {
    /// A device's UUID, which no other has.
    pub(super) fn uuid(
        &mut self,
        key: &Spanned<String>,
        uuids: &mut HashMap<String, usize>,
    ) -> Option<Uuid> {
        let Ok(uuid) = Uuid::parse_str(key.get_ref()) else {
            let rule = "a UUID is written as 32 hexadecimal digits, with or without hyphens";
            self.refuse(key.span(), "device.uuid", rule);
            return None;
        };
        let text = Spanned::new(key.span(), uuid.to_string());
        self.unique(&text, "device.uuid", uuids).then_some(uuid)
    }
}
