//! A disk that loses power, and a clock that tests turn.
