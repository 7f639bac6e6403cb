"""One module per case; `cases()` yields what `harness.measure` takes."""
