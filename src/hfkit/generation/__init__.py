"""Text from prompts: one prompt, a chat, choices, a file of prompts."""
