mod requester;
mod rig;
mod storm;
mod worker;
