//! The journal, seen by the agent: DELs that plugins wrote down while no agent was there, and those the agent itself
//! could not finish because the datastore was away. Carried out at the start, now and then, and before an ADD of the
//! same attachment.

use std::{sync::Arc, time::Duration};

use brindle_cni::{
    error::code,
    journal::{self, Contents, Entry, Record},
    proto::Attachment,
};

use super::{refused::Refused, service::Service};

/// How often the folder is looked at. A plugin that gave up waiting for a busy agent leaves an entry beside it.
const EVERY: Duration = Duration::from_secs(30);

/// ... while the datastore is to be told of pods that were attached without it.
const OWING: Duration = Duration::from_secs(1);

impl Service {
    /// Carries out all entries; those that fail stay for the next time.
    pub(super) async fn replay(&self) {
        // What was given while the datastore was away may have been promised away by one of the entries.
        self.record_owed().await;
        let Contents { entries, damaged } = match self.read_journal().await {
            Ok(contents) => contents,
            Err(e) => {
                tracing::warn!("cannot read the journal {}: {e}", self.journal.display());
                return;
            }
        };
        for (path, why) in damaged {
            tracing::warn!(
                "{}: {why}; set aside as .bad: addresses of one deleted container may be left, see the blocks' owners",
                path.display()
            );
        }
        for entry in entries {
            let _turn = self.turn(&entry.record.attachment).await;
            if let Err(refused) = self.carry_out_entry(&entry).await {
                let container = &entry.record.attachment.container_id;
                tracing::warn!(%container, "a DEL of the journal must wait: {}", refused.msg);
            }
        }
        self.keep_reserve().await;
        self.age_overlaps().await;
    }

    /// Room for entries of a full disk; taken back when they are carried out.
    async fn keep_reserve(&self) {
        let folder = self.state_dir.clone();
        match tokio::task::spawn_blocking(move || journal::keep_reserve(&folder)).await {
            Ok(Ok(journal::RESERVED..)) => {}
            Ok(Ok(kept)) => {
                tracing::debug!("the disk is nearly full: only {kept} octets are kept for the journal")
            }
            Ok(Err(e)) => tracing::debug!("no room is kept for the journal: {e}"),
            Err(e) => tracing::debug!("no room is kept for the journal: {e}"),
        }
    }

    /// Looks at the folder for as long as the agent runs.
    pub(super) async fn keep_replaying(self: Arc<Self>) {
        loop {
            let pause = if self.attached.owed().is_empty() { EVERY } else { OWING };
            tokio::select! {
                () = tokio::time::sleep(pause) => self.replay().await,
                // Just told: the pause is chosen anew.
                () = self.attached.owing.notified() => {}
            }
        }
    }

    /// What the journal holds for this attachment.
    pub(super) async fn promised(&self, a: &Attachment) -> Option<Entry> {
        let (folder, attachment) = (self.journal.clone(), a.clone());
        tokio::task::spawn_blocking(move || journal::find(&folder, &attachment)).await.ok().flatten()
    }

    /// Carries it out, before the attachment is added anew.
    pub(super) async fn settle(&self, promised: Option<Entry>) -> Result<(), Refused> {
        match promised {
            Some(entry) => self.carry_out_entry(&entry).await,
            None => Ok(()),
        }
    }

    async fn carry_out_entry(&self, entry: &Entry) -> Result<(), Refused> {
        let a = &entry.record.attachment;
        self.unlocked().await?;
        self.forget(a, entry.record.addresses_only, None).await?;
        tracing::info!(container = %a.container_id, "carried out a DEL of the journal");
        self.unnote(a).await;
        Ok(())
    }

    /// Promises a DEL on disk.
    pub(super) async fn note(
        &self,
        a: &Attachment,
        addresses_only: bool,
        why: &Refused,
    ) -> Result<(), Refused> {
        let (folder, record) = (self.journal.clone(), Record { attachment: a.clone(), addresses_only });
        let written = tokio::task::spawn_blocking(move || journal::write(&folder, &record)).await;
        match written {
            Ok(Ok(path)) => {
                tracing::warn!(container = %a.container_id, cause = %why.msg, "DEL put off: {}", path.display());
                Ok(())
            }
            Ok(Err(e)) => Err(self.unwritable(why, &e.to_string())),
            Err(e) => Err(self.unwritable(why, &e.to_string())),
        }
    }

    /// [`Self::note`] for addresses that could not be returned after a refused request.
    pub(super) async fn note_release(&self, a: &Attachment) {
        let why = Refused::new(code::TRY_AGAIN, "addresses of a refused request are not back yet", "");
        if let Err(refused) = self.note(a, true, &why).await {
            tracing::warn!(container = %a.container_id, "its addresses stay until its DEL: {}", refused.msg);
        }
    }

    fn unwritable(&self, why: &Refused, e: &str) -> Refused {
        Refused::new(
            code::IO,
            format!("{}, and cannot write to {}: {e}", why.msg, self.journal.display()),
            "make the folder writable, then delete again; no address is lost",
        )
    }

    /// Forgets the entry of an attachment.
    pub(super) async fn unnote(&self, a: &Attachment) {
        let (folder, attachment) = (self.journal.clone(), a.clone());
        let removed = tokio::task::spawn_blocking(move || journal::remove(&folder, &attachment)).await;
        if let Ok(Err(e)) = removed {
            tracing::warn!("cannot remove an entry of {}: {e}", self.journal.display());
        }
    }

    async fn read_journal(&self) -> std::io::Result<Contents> {
        let folder = self.journal.clone();
        tokio::task::spawn_blocking(move || journal::read(&folder)).await.map_err(std::io::Error::other)?
    }
}
