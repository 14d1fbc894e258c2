//! Random bytes from the kernel.
use zeroize::Zeroizing;

/// The kernel gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("cannot get random bytes from the kernel: {0}")]
pub struct NoRandom(getrandom::Error);

/// 32 bytes for a key.
pub fn key_bytes() -> Result<Zeroizing<[u8; 32]>, NoRandom> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(NoRandom)?;
    Ok(bytes)
}

/// A seed for jitter, never for a secret. Without random bytes it is the boot clock.
pub fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => super::clock::Clock::now(&super::clock::SystemClock).since_boot().as_nanos() as u64,
    }
}
