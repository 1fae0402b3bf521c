//! The mesh: peers, topics and streams over libp2p. It moves bytes, and has never heard of tasks or models.
