"""Files to labelled tables and back: movies, RELION and CryoSPARC metadata, maps, the result store, synthetic data."""
