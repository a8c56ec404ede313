//! Random faults for a long time on one cluster under load.
