"""What the evaluation commands share: opening what is judged, the run folder, plots; and the runtimes' comparison."""
