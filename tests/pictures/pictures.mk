# Pictures of docs/ that show recorded data; needs the captures.
.PHONY: pictures
pictures: setup
	$(BIN)/python -m tests.pictures
