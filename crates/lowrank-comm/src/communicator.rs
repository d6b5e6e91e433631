use crate::Result;

/// The ranks of a run and messages between them. All ranks make the same calls in the same order.
pub trait Communicator: Send + Sync {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Sends `send[r]` to each rank `r` and fills `receive[r]` with what that rank sends to this one. Both sides know the
    /// lengths. What is sent to oneself is copied.
    ///
    /// # Errors
    /// Where a rank ended or does not answer.
    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()>;

    /// Ends all ranks at once, as far as that is possible; the caller exits with `code`.
    fn abort(&self, code: u8);

    /// Says that no message follows. The last call.
    ///
    /// # Errors
    /// Where a rank ended before.
    fn finish(&self) -> Result<()>;

    /// Whether this rank prints and writes for all.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The bytes of every rank, in their order.
    ///
    /// # Errors
    /// As [`Communicator::exchange`].
    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let size = self.size();
        let length = (own.len() as u64).to_le_bytes();
        let mut lengths = vec![[0; 8]; size];
        let mut places: Vec<&mut [u8]> = lengths.iter_mut().map(|length| &mut length[..]).collect();
        self.exchange(&vec![&length[..]; size], &mut places)?;
        self.all_gather_known(
            own,
            lengths.iter().map(|length| u64::from_le_bytes(*length) as usize).collect(),
        )
    }

    /// The same where this rank knows the length of what each rank has.
    ///
    /// # Errors
    /// As [`Communicator::exchange`].
    fn all_gather_known(&self, own: &[u8], lengths: Vec<usize>) -> Result<Vec<Vec<u8>>> {
        let mut all: Vec<Vec<u8>> = lengths.into_iter().map(|length| vec![0; length]).collect();
        let mut places: Vec<&mut [u8]> = all.iter_mut().map(|bytes| &mut bytes[..]).collect();
        self.exchange(&vec![own; self.size()], &mut places)?;
        Ok(all)
    }

    /// The bytes of `root`, everywhere.
    ///
    /// # Errors
    /// As [`Communicator::exchange`].
    fn broadcast(&self, root: usize, own: &[u8]) -> Result<Vec<u8>> {
        let own = if self.rank() == root { own } else { &[] };
        Ok(self.all_gather(own)?.swap_remove(root))
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// As [`Communicator::exchange`].
    fn barrier(&self) -> Result<()> {
        let mut nothing = vec![[0]; self.size()];
        let mut places: Vec<&mut [u8]> = nothing.iter_mut().map(|byte| &mut byte[..]).collect();
        self.exchange(&vec![&[0][..]; self.size()], &mut places)
    }
}
