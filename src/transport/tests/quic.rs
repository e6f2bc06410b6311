//! What only QUIC can show.
