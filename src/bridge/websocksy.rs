//! websocksy's configuration files.
