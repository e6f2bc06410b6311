use super::{Failure, logging};
use clap::Args;
/// x
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES\n  outrigger dev")]
pub(super) struct Dev {}
impl Dev {
    pub(super) async fn run(self, _log: &logging::Options) -> Result<(), Failure> {
        Ok(())
    }
}
