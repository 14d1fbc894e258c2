//! Laws of `derive`: whatever is configured and published, what is wanted is something the kernel can have.
