"""The hosts' processor, emulated: the pinned wheels and the services' own code on aarch64."""
