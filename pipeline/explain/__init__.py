"""What a stage would do, as text: `--plan`. Builds on the meta device and writes nothing."""
