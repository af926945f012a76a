"""Movies frame by frame, as the camera counted, and the camera itself."""
