"""The memory model: how strongly each sample is remembered, and which to replay."""
