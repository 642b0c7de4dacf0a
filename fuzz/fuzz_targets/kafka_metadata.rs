#![no_main]

throughline_fuzz_runs::runs!("kafka_metadata");
