//! `lvolfs target`.

use std::net::SocketAddr;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::ask::{Daemon, done};
use super::pretty;
use super::table::Table;
use crate::config::VolumeName;
use crate::control::types::{
    AddListener, AddNamespace, AddNs, AllowAnyHost, CreateSubsystem, GetSubsystems, ListenAddress,
    NvmfNamespace, NvmfSubsystem, SelectNs, SelectSubsystem, SubsystemHost,
};
use crate::spec::fabrics::DISCOVERY_NQN;

/// What other machines can use
#[derive(Debug, Subcommand)]
pub enum TargetVerb {
    /// List what is exported
    List,
    /// Show a subsystem: namespaces, listeners, hosts, and who is connected
    Show {
        /// The subsystem's NQN
        nqn: String,
    },
    /// Export a volume as a namespace; makes the subsystem if it is not there
    Export(Export),
    /// Take a volume away from the hosts; its data stays
    Unexport {
        /// The volume, as pool/volume
        #[arg(value_parser = VolumeName::parse)]
        volume: VolumeName,
        /// Delete the subsystem too if that was its last namespace
        #[arg(long)]
        delete_empty: bool,
    },
    /// Let a host connect to a subsystem
    Allow(HostAccess),
    /// Let it no longer, and disconnect it
    Deny(HostAccess),
}

/// A volume to export.
#[derive(Debug, Args)]
pub struct Export {
    /// The volume, as pool/volume
    #[arg(value_parser = VolumeName::parse)]
    volume: VolumeName,
    /// The subsystem's NQN, such as nqn.2026-11.io.lvolfs:demo
    #[arg(long)]
    nqn: String,
    /// Where a new subsystem is to be reached; may be given several times
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4420")]
    listen: Vec<SocketAddr>,
    /// NQN of a host that may connect; may be given several times
    #[arg(long, value_name = "NQN")]
    host: Vec<String>,
    /// NSID; the first that is free if not given
    #[arg(long)]
    nsid: Option<u32>,
}

/// A host of a subsystem.
#[derive(Debug, Args)]
pub struct HostAccess {
    /// The subsystem's NQN
    nqn: String,
    /// The host's NQN, or `any` for every host
    host: String,
}

impl Daemon {
    pub(super) fn target(&mut self, verb: TargetVerb, json: bool) -> anyhow::Result<String> {
        match verb {
            TargetVerb::List => self.list_exports(json),
            TargetVerb::Show { nqn } => self.show_subsystem(&nqn, json),
            TargetVerb::Export(export) => self.export(export, json),
            TargetVerb::Unexport { volume, delete_empty } => {
                self.unexport(&volume, delete_empty, json)
            }
            TargetVerb::Allow(HostAccess { nqn, host }) => {
                self.set_access(&nqn, &host, true)?;
                Ok(done(json, &format!("{host} may connect to {nqn} now")))
            }
            TargetVerb::Deny(HostAccess { nqn, host }) => {
                self.set_access(&nqn, &host, false)?;
                Ok(done(json, &format!("{host} may not connect to {nqn} any more")))
            }
        }
    }

    fn subsystems(&mut self) -> anyhow::Result<Vec<NvmfSubsystem>> {
        let mut subsystems = self.client().nvmf_get_subsystems(&GetSubsystems::default())?;
        subsystems.retain(|subsystem| subsystem.nqn != DISCOVERY_NQN);
        Ok(subsystems)
    }

    fn list_exports(&mut self, json: bool) -> anyhow::Result<String> {
        let subsystems = self.subsystems()?;
        if json {
            return Ok(pretty(&subsystems));
        }
        let mut table = Table::new(&["SUBSYSTEM", "NSID", "VOLUME", "LISTENS ON", "HOSTS"]);
        for subsystem in &subsystems {
            let (listeners, hosts) = (listeners(subsystem), hosts(subsystem));
            let namespaces = subsystem.namespaces.as_deref().unwrap_or_default();
            if namespaces.is_empty() {
                let (nqn, none) = (subsystem.nqn.clone(), "-".to_owned());
                table.row([nqn, none.clone(), none, listeners.clone(), hosts.clone()]);
            }
            for namespace in namespaces {
                let (nqn, nsid) = (subsystem.nqn.clone(), namespace.nsid.to_string());
                table.row([nqn, nsid, volume_of(namespace), listeners.clone(), hosts.clone()]);
            }
        }
        Ok(table.to_string())
    }

    fn show_subsystem(&mut self, nqn: &str, json: bool) -> anyhow::Result<String> {
        let select = SelectSubsystem { nqn: nqn.to_owned(), tgt_name: None };
        let Some(subsystem) = self.subsystems()?.into_iter().find(|known| known.nqn == nqn) else {
            bail!("there is no subsystem {nqn}; `lvolfs target list` shows all");
        };
        let controllers = self.client().nvmf_subsystem_get_controllers(&select)?;
        if json {
            return Ok(pretty(&serde_json::json!({
                "subsystem": subsystem, "controllers": controllers,
            })));
        }
        let mut facts = Table::new(&["SUBSYSTEM", nqn]);
        facts.fact("serial number", subsystem.serial_number.as_deref().unwrap_or_default());
        facts.fact("model number", subsystem.model_number.as_deref().unwrap_or_default());
        facts.fact("listens on", listeners(&subsystem));
        facts.fact("hosts", hosts(&subsystem));
        let mut namespaces = Table::new(&["NSID", "VOLUME", "UUID", "ANA GROUP", "SEEN BY"]);
        for namespace in subsystem.namespaces.iter().flatten() {
            namespaces.row([
                namespace.nsid.to_string(),
                volume_of(namespace),
                namespace.uuid.to_string(),
                namespace.anagrpid.map_or_else(|| "-".to_owned(), |group| group.to_string()),
                namespace.hosts.as_ref().map_or_else(|| "all".to_owned(), |list| list.join(" ")),
            ]);
        }
        let mut connected = Table::new(&["CONTROLLER", "HOST", "HOST ID", "QUEUES", "THROUGH"]);
        for controller in &controllers {
            connected.row([
                controller.cntlid.to_string(),
                controller.hostnqn.clone(),
                controller.hostid.clone(),
                controller.num_io_qpairs.to_string(),
                shown(&controller.listen_address),
            ]);
        }
        Ok(format!("{facts}\n{namespaces}\n{connected}"))
    }

    /// One volume, in a subsystem that is made for it if need be. What was made before a step that
    /// fails is taken back.
    fn export(&mut self, export: Export, json: bool) -> anyhow::Result<String> {
        let Export { volume, nqn, host, .. } = &export;
        let there = self.subsystems()?.into_iter().any(|subsystem| subsystem.nqn == *nqn);
        if !there {
            let create = CreateSubsystem { nqn: nqn.clone(), ..CreateSubsystem::default() };
            self.client().nvmf_create_subsystem(&create)?;
        }
        let nsid = match self.fill(&export, there) {
            Ok(nsid) => nsid,
            Err(error) => {
                if !there {
                    let select = SelectSubsystem { nqn: nqn.clone(), tgt_name: None };
                    // The first error is the one to tell.
                    drop(self.client().nvmf_delete_subsystem(&select));
                }
                return Err(error);
            }
        };
        let mut text = format!("{volume} is namespace {nsid} of {nqn} now");
        if !there && host.is_empty() {
            text += &format!("; no host may connect yet: lvolfs target allow {nqn} HOST-NQN");
        }
        Ok(done(json, &text))
    }

    /// Adds hosts, namespace and, to a subsystem that was not `there`, listeners; the NSID.
    fn fill(&mut self, export: &Export, there: bool) -> anyhow::Result<u32> {
        let Export { volume, nqn, listen, host, nsid } = export;
        for host in host {
            self.set_access(nqn, host, true)?;
        }
        let namespace =
            AddNamespace { bdev_name: volume.to_string(), nsid: *nsid, ..AddNamespace::default() };
        let add = AddNs { nqn: nqn.to_owned(), namespace, tgt_name: None };
        let nsid = self.client().nvmf_subsystem_add_ns(&add)?;
        if !there {
            for address in listen {
                self.client().nvmf_subsystem_add_listener(&AddListener {
                    nqn: nqn.to_owned(),
                    listen_address: ListenAddress::of(*address),
                    secure_channel: None,
                    ana_state: None,
                    tgt_name: None,
                })?;
            }
        }
        Ok(nsid)
    }

    fn unexport(
        &mut self,
        volume: &VolumeName,
        delete_empty: bool,
        json: bool,
    ) -> anyhow::Result<String> {
        let name = volume.to_string();
        for subsystem in self.subsystems()? {
            let namespaces = subsystem.namespaces.unwrap_or_default();
            let found = namespaces.iter().find(|known| known.volume.as_ref() == Some(&name));
            let Some(namespace) = found else { continue };
            let (nqn, nsid) = (subsystem.nqn, namespace.nsid);
            let select = SelectNs { nqn: nqn.clone(), nsid, tgt_name: None };
            self.client().nvmf_subsystem_remove_ns(&select)?;
            if delete_empty && namespaces.len() == 1 {
                let select = SelectSubsystem { nqn: nqn.clone(), tgt_name: None };
                self.client().nvmf_delete_subsystem(&select)?;
            }
            return Ok(done(json, &format!("{volume} is not exported any more; it was in {nqn}")));
        }
        bail!("{volume} is not exported");
    }

    fn set_access(&mut self, nqn: &str, host: &str, allow: bool) -> anyhow::Result<()> {
        let nqn = nqn.to_owned();
        if host == "any" {
            let any = AllowAnyHost { nqn, allow_any_host: allow, tgt_name: None };
            self.client().nvmf_subsystem_allow_any_host(&any)?;
            return Ok(());
        }
        let host = SubsystemHost { nqn, host: host.to_owned(), timeout_ms: None, tgt_name: None };
        if allow {
            self.client().nvmf_subsystem_add_host(&host)?;
        } else {
            self.client().nvmf_subsystem_remove_host(&host)?;
        }
        Ok(())
    }
}

fn volume_of(namespace: &NvmfNamespace) -> String {
    namespace.volume.clone().unwrap_or_else(|| format!("{} (missing)", namespace.bdev_name))
}

fn shown(address: &ListenAddress) -> String {
    let port = address.trsvcid.as_deref().unwrap_or_default();
    if address.traddr.contains(':') {
        format!("[{}]:{port}", address.traddr)
    } else {
        format!("{}:{port}", address.traddr)
    }
}

fn listeners(subsystem: &NvmfSubsystem) -> String {
    let all: Vec<String> = subsystem.listen_addresses.iter().map(shown).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(" ") }
}

fn hosts(subsystem: &NvmfSubsystem) -> String {
    if subsystem.allow_any_host {
        return "any".to_owned();
    }
    let all: Vec<&str> = subsystem.hosts.iter().map(|host| host.nqn.as_str()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" ") }
}
