//! The recorded network's servers answer as the recording says: without this, what is tested against them says little.
