//! The random numbers of PyTorch's CPU generator: MT19937 (Matsumoto & Nishimura 1998), and its way of making floats.

const N: usize = 624;
const M: usize = 397;

/// `torch.Generator(device="cpu")` after `manual_seed`.
pub struct Generator {
    state: [u32; N],
    at: usize,
}

impl Generator {
    /// Only the low 32 bits of the seed matter, as in PyTorch.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: N }
    }

    fn next(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `tensor.uniform_(low, high)` for float32: 24 random bits.
    pub fn uniform(&mut self, low: f64, high: f64) -> f32 {
        let unit = (self.next() & 0x00ff_ffff) as f32 / (1 << 24) as f32;
        let (low, high) = (low as f32, high as f32);
        unit * (high - low) + low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.Generator().manual_seed(7)`, `torch.empty(3).uniform_(-1, 1, generator=g)` and
    /// `manual_seed(0)`: PyTorch 2.15.
    #[test]
    fn gives_pytorchs_numbers() {
        let mut generator = Generator::new(7);
        let got: Vec<f32> = (0..3).map(|_| generator.uniform(-1.0, 1.0)).collect();
        assert_eq!(got, [0.069_845_08, -0.602_393_6, 0.318_423_4]);
        let mut generator = Generator::new(0);
        let thousandth = (0..1000).map(|_| generator.uniform(0.0, 1.0)).last();
        assert_eq!(thousandth, Some(0.403_863_43));
    }
}
