//! Whether what clients saw of one key can be explained by operations that took effect one at a time.
