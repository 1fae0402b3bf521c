//! The swarm: who is there, what each can do, and the work that travels between them.
