#![no_main]

throughline_fuzz_runs::runs!("rabbitmq_message");
