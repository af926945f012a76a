"""CryoSPARC projects: exposures, particles and volumes in, result groups out."""
