"""Kalshi Tape on AWS: topology in, CloudFormation out, and the proofs that both say the same."""
