//! What volumes want of their pools' space.

use std::rc::Rc;

use super::{Answer, DaemonService, failed};
use crate::control::types::{OnFull, SetSpace};
use crate::control::{RpcError, SpaceMethods};
use crate::lvol;
use crate::units::ByteCount;
use crate::volume::PoolOwner;

impl SpaceMethods for DaemonService {
    fn lvolfs_volume_set_space(&self, parameters: SetSpace) -> Answer<bool> {
        let SetSpace { name, reserve, on_full } = parameters;
        let entry = self.volume(&name)?;
        let blob = entry.blob();
        let set = move |owner: Rc<PoolOwner>| async move {
            let store = owner.store();
            if let Some(reserve) = reserve {
                store.set_reserve(blob, ByteCount(reserve)).await?;
            }
            match on_full {
                None => Ok(()),
                Some(OnFull::Error) => store.set_on_full(blob, lvol::OnFull::Error).await,
                Some(OnFull::Wait) => store.set_on_full(blob, lvol::OnFull::Wait).await,
            }
        };
        let result = entry.pool().owner().call_blocking(set).map_err(RpcError::internal)?;
        result.map_err(|error| failed(&error.into()))?;
        Ok(true)
    }
}
