#![no_main]

throughline_fuzz_runs::runs!("aws_message");
