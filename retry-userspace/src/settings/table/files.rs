//! Where settings are written.

use crate::settings::accepts::any;
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// Where settings are written, beside the command line and the environment.
#[derive(Clone, Debug)]
pub struct Files {
    /// TOML file of settings.
    pub config: Option<String>,
    /// File of variables; with a dash before it, it need not be there.
    pub env_file: Option<String>,
}

impl Files {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Files of settings");
        Ok(Self {
            config: rows.read(Row {
                flag: "config",
                env: "CONFIG",
                default: "",
                accepts: any("the path of a TOML file", values::optional_text_path),
                meaning: "File of settings: a key per setting, named as its flag.",
                consequence: "Flags and variables beat it. SIGHUP and POST /v1/config read it again.",
            })?,
            env_file: rows.read(Row {
                flag: "env-file",
                env: "ENV_FILE",
                default: "",
                accepts: any(
                    "the path of a file, with a dash before it when it may be absent",
                    values::optional_text_path,
                ),
                meaning: "File of variables, as systemd reads its EnvironmentFile.",
                consequence: "Its variables beat those of the environment. SIGHUP and POST /v1/config read it again.",
            })?,
        })
    }

    /// True when there is a file to be read again.
    pub(crate) const fn are_named(&self) -> bool {
        self.config.is_some() || self.env_file.is_some()
    }
}
