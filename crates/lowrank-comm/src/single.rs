use crate::{Communicator, Result};

/// One process alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()> {
        receive[0].copy_from_slice(send[0]);
        Ok(())
    }

    fn abort(&self, _: u8) {}

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
