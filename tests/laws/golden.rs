//! Plans as people see them, kept as text in `tests/golden`. `SPOKE_BLESS=1` writes them anew; read the difference.
