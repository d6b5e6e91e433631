use crate::{Communicator, Error, Result};

/// How a [`Callback`] sends bytes: it returns those of every rank, in their order.
pub type AllGather = dyn Fn(&[u8]) -> std::result::Result<Vec<Vec<u8>>, String> + Send + Sync;

/// Ranks that a program connected by other means, such as PyTorch's `torch.distributed`: all messages go through one
/// function that gathers bytes.
pub struct Callback {
    rank: usize,
    size: usize,
    all_gather: Box<AllGather>,
}

impl Callback {
    /// Rank `rank` of `size`.
    pub fn new(rank: usize, size: usize, all_gather: Box<AllGather>) -> Self {
        Self { rank, size, all_gather }
    }
}

impl Communicator for Callback {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()> {
        // What is for everybody is sent once.
        let same = send.iter().all(|part| std::ptr::eq(*part, send[0]));
        let mut message = vec![u8::from(same)];
        for part in if same { &send[..1] } else { send } {
            message.extend((part.len() as u64).to_le_bytes());
            message.extend_from_slice(part);
        }
        let all = (self.all_gather)(&message).map_err(Error::Callback)?;
        if all.len() != self.size {
            let (got, size) = (all.len(), self.size);
            return Err(Error::Callback(format!("all_gather gave {got} messages for {size} ranks")));
        }
        for (rank, (message, place)) in all.iter().zip(receive).enumerate() {
            let own = part(message, self.rank).unwrap_or_default();
            if own.len() != place.len() {
                return Err(Error::Mismatch { rank, got: own.len(), wanted: place.len() });
            }
            place.copy_from_slice(own);
        }
        Ok(())
    }

    fn abort(&self, _: u8) {}

    fn finish(&self) -> Result<()> {
        self.barrier()
    }
}

/// The part of a message that is for `rank`.
fn part(message: &[u8], rank: usize) -> Option<&[u8]> {
    let (same, mut rest) = message.split_first()?;
    let mut skip = if *same == 1 { 0 } else { rank };
    loop {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let own = after.get(..length)?;
        if skip == 0 {
            return Some(own);
        }
        (skip, rest) = (skip - 1, &after[length..]);
    }
}
