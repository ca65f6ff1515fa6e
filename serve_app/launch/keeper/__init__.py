"""What watches over a server's HAProxy from outside Ray, and outlives the launcher."""
