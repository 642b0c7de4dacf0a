//! Tests of Throughline against real brokers and foreign clients; see `tests/`.
