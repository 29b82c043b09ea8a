"""What holds state while features are computed: sessions, the value cache, the runner."""
