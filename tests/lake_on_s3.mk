.PHONY: lake-s3

# The lake's tests again with an S3 where they name a directory, every request recorded: about two minutes.
lake-s3: setup
	$(BIN)/python -m pytest -q -p no:cacheprovider -p tests.lake_on_s3 $(or $(ARGS),tests/unit/kalshilake tests/property/test_lake_book.py)
