//! Keys and the audit trail, in one database file that survives the end of the process at any moment: what a call that returned
//! has written is there (`redb`, copy-on-write with two-phase commits and fsync).

use crate::rules;
use anyhow::{Context as _, Result, ensure};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use std::path::Path;

const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");
const OWN: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("own");

/// Longest key, in bytes: an RSA key of 4096 bits fits.
pub const MAX_KEY: usize = 8 << 10;

/// The database.
pub struct Store(Database);

impl Store {
    /// Opens the database, or makes it. Only its owner can read the file.
    ///
    /// # Errors
    /// It cannot be opened, or another process has it open.
    pub fn open(path: &Path) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let cannot = || {
            format!(
                "cannot open the key store {}: does its directory exist, and is it in use?",
                path.display()
            )
        };
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let backend = FileBackend::new(file.with_context(cannot)?).with_context(cannot)?;
        let database = Database::builder().create_with_backend(backend).with_context(cannot)?;
        let write = database.begin_write().with_context(cannot)?;
        write.open_table(KEYS)?;
        write.open_table(AUDIT)?;
        write.open_table(OWN)?;
        write.commit().with_context(cannot)?;
        Ok(Self(database))
    }

    /// Keeps a key under a name that is free.
    ///
    /// # Errors
    /// There is one of this name, or the disk fails.
    pub fn import(&self, name: &str, key: &[u8]) -> Result<()> {
        ensure!(rules::is_name(name), "{name:?} is no name of a key: {}", rules::NAMES);
        ensure!((16..=MAX_KEY).contains(&key.len()), "a key has 16 to {MAX_KEY} bytes");
        let write = self.0.begin_write()?;
        {
            let mut keys = write.open_table(KEYS)?;
            ensure!(keys.get(name)?.is_none(), "there is a key called {name}");
            keys.insert(name, key)?;
        }
        write.commit().context("the key store cannot be written")
    }

    /// The key of this name.
    ///
    /// # Errors
    /// The disk fails.
    pub fn key(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let read = self.0.begin_read()?;
        Ok(read.open_table(KEYS)?.get(name)?.map(|key| key.value().to_vec()))
    }

    /// A secret of the service's own, made by `new` the first time.
    ///
    /// # Errors
    /// The disk fails, or `new` does.
    pub fn own(&self, name: &str, new: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let write = self.0.begin_write()?;
        let secret = {
            let mut own = write.open_table(OWN)?;
            let there = own.get(name)?.map(|secret| secret.value().to_vec());
            match there {
                Some(secret) => secret,
                None => {
                    let secret = new()?;
                    own.insert(name, secret.as_slice())?;
                    secret
                }
            }
        };
        write.commit().context("the key store cannot be written")?;
        Ok(secret)
    }

    /// Adds to the audit trail. When this returns, the entry is on the disk.
    ///
    /// # Errors
    /// The disk fails: then what the entry is about must not happen.
    pub fn audit(&self, entry: &serde_json::Value) -> Result<()> {
        let write = self.0.begin_write()?;
        {
            let mut audit = write.open_table(AUDIT)?;
            let next = audit.last()?.map_or(0, |(number, _)| number.value() + 1);
            audit.insert(next, entry.to_string().as_str())?;
        }
        write.commit().context("the audit trail cannot be written")
    }

    /// The whole audit trail, oldest first.
    ///
    /// # Errors
    /// The disk fails.
    pub fn trail(&self) -> Result<Vec<String>> {
        let read = self.0.begin_read()?;
        let audit = read.open_table(AUDIT)?;
        audit.iter()?.map(|entry| Ok(entry?.1.value().to_owned())).collect()
    }
}
