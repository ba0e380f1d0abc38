//! A volume as front ends see it.
